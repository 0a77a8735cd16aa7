"""The hash of a network's architecture, with which sites and server verify that they train the same network.

A model file fits a network if its tensors fit and the file was written for the same architecture (`load_strictly`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import suppress

from torch import Tensor, nn

from wardround.errors import ModelError
from wardround.networks.model_file import tensors_sha256
from wardround.networks.public_head import PhantomHead
from wardround.networks.weights import TRAINABLE, not_exchanged

# Part of every architecture's hash: increase it if a forward pass changes while layers and shapes stay the same.
ARCHITECTURE_REVISION = 1
INSTALLED = "_installed_names"  # attribute in which `build_model` stores the names of frozen tensors from a file

# The attributes that, besides the shapes of its tensors, determine what a torch layer computes. They are listed by
# name, so that a new attribute in a later torch version does not change any hash.
HYPER_PARAMETERS: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Conv2d: ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode"),
    nn.Linear: (),
    nn.GroupNorm: ("num_groups", "num_channels", "eps", "affine"),
    nn.MaxPool2d: ("kernel_size", "stride", "padding", "dilation", "ceil_mode"),
    nn.AvgPool2d: ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"),
    nn.Flatten: ("start_dim", "end_dim"),
    nn.ConvTranspose2d: ("kernel_size", "stride", "padding", "output_padding", "dilation", "groups", "padding_mode"),
    nn.ReLU: (),
    nn.LeakyReLU: ("negative_slope",),
    nn.Tanh: (),
    nn.Identity: (),
    nn.Sequential: (),
    nn.ModuleList: (),
}


def architecture_sha256(network: nn.Module) -> str:
    """Return the SHA-256 in hex of a network's layers (path, type, hyper-parameters) and tensors (name, shape, dtype).

    The values of trained weights are not included. The values of frozen tensors from a file are included: they are
    never sent, each site has its own copy, and sites whose copies differ must not be averaged. The values of frozen
    random weights are not included, because the last bits of seeded random numbers depend on the processor. Raises
    `ModelError` for a layer that is neither defined in this package nor listed in `HYPER_PARAMETERS`, because a layer
    that cannot be described cannot be approved.
    """
    return _architecture_sha256(network, getattr(network, INSTALLED, frozenset()))


def _architecture_sha256(network: nn.Module, installed: frozenset[str]) -> str:
    layers = [[path, type(layer).__name__, _hyper_parameters(layer)] for path, layer in network.named_modules()]
    tensors = [[name, list(tensor.shape), str(tensor.dtype)] for name, tensor in sorted(network.state_dict().items())]
    content: dict[str, object] = {"revision": ARCHITECTURE_REVISION, "layers": layers, "tensors": tensors}
    if isinstance(network, PhantomHead):
        content["public"] = tensors_sha256(network.public.state_dict())
    elif installed:
        content["public"] = tensors_sha256({n: tensor for n, tensor in network.state_dict().items() if n in installed})
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def possible_architectures(network: nn.Module) -> Iterator[str]:
    """Yield the hashes that a run with these weights may have had, one for each choice of trainable parameters."""
    for trainable in TRAINABLE:
        with suppress(ModelError):  # the network does not support this choice
            yield _architecture_sha256(network, not_exchanged(network, trainable))


def load_strictly(network: nn.Module, tensors: dict[str, Tensor], metadata: dict[str, str], complaint: str) -> None:
    """Load the tensors into the network.

    Raises a `ModelError` that names the first mismatch in the order of names: a missing or unknown tensor, a wrong
    shape or dtype, values that are not finite; or an architecture other than the one in the file's metadata.
    """
    wanted = network.state_dict()
    for name in sorted(wanted.keys() | tensors.keys()):
        if name not in tensors:
            raise ModelError(f"{complaint} {name} is missing")
        if name not in wanted:
            raise ModelError(f"{complaint} {name} is not part of it")
        found, right = tensors[name], wanted[name]
        if found.shape != right.shape:
            raise ModelError(f"{complaint} {name} has shape {tuple(found.shape)}, needs {tuple(right.shape)}")
        if found.dtype != right.dtype:
            raise ModelError(f"{complaint} {name} has type {found.dtype}, needs {right.dtype}")
        if not found.isfinite().all():
            raise ModelError(f"{complaint} {name} holds values that are not finite")
    network.load_state_dict(tensors, strict=True)
    written = _written_architecture(metadata)
    if written is not None and written not in possible_architectures(network):
        raise ModelError(f"{complaint} its names and shapes match, but it was written for a different architecture")


def _written_architecture(metadata: dict[str, str]) -> str | None:
    """Return the architecture's hash from a file's metadata or its manifest (`storage/checkpoint.py`), or None."""
    if "architecture_sha256" in metadata:
        return metadata["architecture_sha256"]
    try:
        manifest = json.loads(metadata.get("manifest", "{}"))
    except json.JSONDecodeError:
        return None
    return manifest.get("architecture_sha256") if isinstance(manifest, dict) else None


def _hyper_parameters(layer: nn.Module) -> dict[str, object]:
    """Return a layer's attributes listed in `HYPER_PARAMETERS`, or the public plain attributes of a project layer.

    Raises `ModelError` for a layer that is neither listed there nor defined in this package.
    """
    known = [kind for kind in type(layer).__mro__ if kind in HYPER_PARAMETERS]
    ours = type(layer).__module__.startswith("wardround.")
    if not (ours or type(layer) in HYPER_PARAMETERS):
        raise ModelError(f"{type(layer).__name__}: the fingerprint cannot describe such a layer")
    values = {name: getattr(layer, name) for kind in known for name in HYPER_PARAMETERS[kind]}
    if ours and not known:
        values |= {
            name: value
            for name, value in vars(layer).items()
            if not name.startswith("_") and name != "training" and isinstance(value, (bool, int, float, str, tuple))
        }
    return values
