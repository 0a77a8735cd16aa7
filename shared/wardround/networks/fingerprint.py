"""The hash of a network's architecture, by which sites and server know that they train the same network.

A model file fits a network when its tensors do and it was written for the same architecture (`load_strictly`).
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

# Goes into every architecture's hash: raise it when a forward pass changes while layers and shapes stay.
ARCHITECTURE_REVISION = 1
INSTALLED = "_installed_names"  # a network's frozen tensors that come from a file, where `build_model` notes them

# What makes a layer of torch compute what it does, beside the shapes of its tensors. By name, so that a new attribute
# in a later torch changes no hash.
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
    """SHA-256 in hex over the layers in their order (path, type, hyper-parameters) and tensors (name, shape, dtype).

    Weights that train do not count. What is frozen and comes from a file counts with its values: nobody sends it, each
    site has its own copy, and sites whose copies differ must not be averaged. Frozen random weights do not: the last
    bits of what a seed draws depend on the processor. Raises `ModelError` for a layer that is neither of this package
    nor in `HYPER_PARAMETERS`: what cannot be described cannot be approved.
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
    """The hashes that a run with these weights could have had: another part of them may have trained there."""
    for trainable in TRAINABLE:
        with suppress(ModelError):  # this network has no such part
            yield _architecture_sha256(network, not_exchanged(network, trainable))


def load_strictly(network: nn.Module, tensors: dict[str, Tensor], metadata: dict[str, str], complaint: str) -> None:
    """Copies the tensors in. Raises `ModelError` that names the first mismatch by the order of names."""
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
        raise ModelError(f"{complaint} its names and shapes fit, but it was written for another architecture")


def _written_architecture(metadata: dict[str, str]) -> str | None:
    """The architecture's hash in a file's metadata, or in the manifest `storage/checkpoint.py` puts there; None when
    absent.
    """
    if "architecture_sha256" in metadata:
        return metadata["architecture_sha256"]
    try:
        manifest = json.loads(metadata.get("manifest", "{}"))
    except json.JSONDecodeError:
        return None
    return manifest.get("architecture_sha256") if isinstance(manifest, dict) else None


def _hyper_parameters(layer: nn.Module) -> dict[str, object]:
    """Of a torch layer what `HYPER_PARAMETERS` lists; of a layer of this package its public plain attributes too."""
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
