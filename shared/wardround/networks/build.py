"""From `[model]` of a study to a network: which one, with which first weights, and which of them travel.

Every network is an `nn.Module` with `.features(images_NCHW) -> (N, D)` on grey values 0..255 (normalisation inside),
`.head`, an `nn.Linear(D, K)` with K = 1 for two labels, and `forward(x) = head(features(x))`; those of the generative
tasks have parts of their own, and a method `travelling`. An image's output depends on that image alone, as clipping by
patient needs: what holds statistics of a batch is refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from wardround.errors import ModelError
from wardround.networks.densenet import DenseNet121
from wardround.networks.phantom_encoder import load_phantom_encoder, tensors_sha256
from wardround.networks.public_head import PhantomHead, PhantomNetwork, phantom_network
from wardround.networks.resnet import LARGE_WIDTHS, SMALL_WIDTHS, ResNet
from wardround.networks.seed_cnn import SeedCNN
from wardround.study.schema import DataSection, ModelSection
from wardround.tasks.reconstruction.degradations import Kind
from wardround.tasks.reconstruction.restorer import Restorer, load_phantom_restorer
from wardround.tasks.synthesis.gan import SharedGAN, phantom_gan
from wardround.tasks.synthesis.phantom_sampler import phantom_sampler

# Goes into every architecture's hash: raise it when a forward pass changes while layers and shapes stay.
ARCHITECTURE_REVISION = 1

FROM_SCRATCH: dict[str, Callable[[DataSection, int], nn.Module]] = {
    "phantom-encoder": lambda data, outputs: PhantomNetwork(outputs),
    "seed-cnn": lambda data, outputs: SeedCNN(data.channel_count, data.image_size, outputs),
    "resnet-small": lambda data, outputs: ResNet(data.channel_count, SMALL_WIDTHS, outputs),
    "resnet-large": lambda data, outputs: ResNet(data.channel_count, LARGE_WIDTHS, outputs),
    "densenet121": lambda data, outputs: DenseNet121(data.channel_count, outputs),
}
INSTALLED = "_installed_names"  # a network's frozen tensors that come from a file, where `build_model` notes them
TRAINABLE = ("head", "norm+head", "all")  # of `model.trainable`
SMALLEST_IMAGE_PX = {"densenet121": 32}

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


def build_model(model: ModelSection, data: DataSection, seed: int, degradation: Kind | None = None) -> nn.Module:
    """The network of a study with its first weights, in float32 on the CPU; only what `exchanged_names` lists has
    `requires_grad`.

    The same sections and seed give the same weights, and torch's global generators are left as they were. `seed` counts
    for `init = "random"` alone; `degradation` chooses the phantom weights of a restorer. Raises `ModelError`, one
    line, for a file that does not fit, an image too small for the network, or a network that would mix patients.
    """
    if data.image_size < SMALLEST_IMAGE_PX.get(model.name, 0):
        raise ModelError(f"data.image_size: {model.name} needs {SMALLEST_IMAGE_PX[model.name]} pixels or more")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the accelerators as well
        network = _first_weights(model, data, degradation)
    refuse_batch_statistics(network)
    exchanged = set(exchanged_names(network, model.trainable))
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name in exchanged)
    if model.init != "random":
        setattr(network, INSTALLED, _not_exchanged(network, model.trainable))
    return network


def exchanged_names(network: nn.Module, trainable: str) -> tuple[str, ...]:
    """Names of the parameters that train and travel, sorted: `head`, `norm+head` (the scales and shifts of the
    normalisation layers too) or `all`. Buffers never travel, nor does what a network keeps frozen: the public features.
    A network of several parts says itself what travels, with a method `travelling(trainable)`.

    Raises `ModelError` for `norm+head` on a network without normalisation layers.
    """
    if hasattr(network, "travelling"):
        return tuple(sorted(network.travelling(trainable)))
    names = {name for name, _ in network.named_parameters()}
    head = {name for name in names if name.startswith("head.")}
    if trainable == "head" or isinstance(network, PhantomHead):
        return tuple(sorted(head))
    if trainable == "all":
        return tuple(sorted(names))
    if trainable != "norm+head":
        raise ModelError(f"model.trainable: {trainable} is none of {', '.join(TRAINABLE)}")
    norms = {
        f"{path}.{name}"
        for path, layer in network.named_modules()
        if isinstance(layer, nn.GroupNorm)
        for name, _ in layer.named_parameters(recurse=False)
    }
    if not norms:
        raise ModelError("model.trainable: this network has no normalisation layers; use head or all")
    return tuple(sorted(norms | head))


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


def refuse_batch_statistics(network: nn.Module) -> None:
    """Raises `ModelError` for a layer that mixes the images of a batch or keeps running statistics of them."""
    for path, layer in network.named_modules():
        running = any(name.startswith("running_") for name, _ in layer.named_buffers(recurse=False))
        if running or isinstance(layer, _BatchNorm):
            kind = type(layer).__name__
            raise ModelError(f"{path or 'the network'}: {kind} keeps statistics of patients; use GroupNorm")


def _first_weights(model: ModelSection, data: DataSection, degradation: Kind | None) -> nn.Module:
    if model.init == "random":
        return _from_scratch(model, data)
    if model.init == "phantom" and model.name == "restorer":
        return load_phantom_restorer(degradation)
    if model.init == "phantom":
        return _from_phantoms(model, data, None)
    path = Path(model.init)
    tensors, metadata = _read(path, model.init_sha256)
    if model.name == "restorer" and "tensors_sha256" in metadata:
        return load_phantom_restorer(degradation, str(path))
    if "tensors_sha256" in metadata:  # as `wardround-sim pretrain` writes it
        return _from_phantoms(model, data, str(path))
    public = _is_phantom_head(model) or model.name == "phantom-sampler"
    network = _from_phantoms(model, data, None) if public else _from_scratch(model, data)
    _load_strictly(network, tensors, metadata, f"{path}: not a {model.name} for this study:")
    return network


def _from_scratch(model: ModelSection, data: DataSection) -> nn.Module:
    if model.name == "restorer":
        return Restorer()
    if model.name == "dcgan":
        return SharedGAN(data.image_size, data.channel_count, len(data.labels))
    if model.name not in FROM_SCRATCH:
        raise ModelError(f"model.init: {model.name} is made of public phantoms; use 'phantom', or a file of a run")
    return FROM_SCRATCH[model.name](data, 1 if len(data.labels) == 2 else len(data.labels))


def _from_phantoms(model: ModelSection, data: DataSection, path: str | None) -> nn.Module:
    if model.name == "phantom-sampler":
        return phantom_sampler(data.labels, path)
    if model.name == "dcgan":
        return phantom_gan(data.image_size, data.channel_count, data.labels, path)
    encoder, public = load_phantom_encoder(path)
    return PhantomHead(public, data.labels) if _is_phantom_head(model) else phantom_network(encoder, data.labels)


def _is_phantom_head(model: ModelSection) -> bool:
    """Whether the features are the frozen public ones. A random encoder has none: its head reads its pooled maps."""
    return model.name == "phantom-encoder" and model.trainable == "head" and model.init != "random"


def _read(path: Path, expected_sha256: str | None) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file, read once, so that what is hashed is what is used."""
    try:
        content = path.read_bytes()
        if expected_sha256 and hashlib.sha256(content).hexdigest() != expected_sha256:
            raise ModelError(f"{path}: changed since the study was read; start again with the file you mean")
        tensors = load(content)
    except FileNotFoundError:
        raise ModelError(f"{path}: no such model file") from None
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path}: cannot be read as a safetensors model file ({error})") from None
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return tensors, header.get("__metadata__", {})


def _load_strictly(network: nn.Module, tensors: dict[str, Tensor], metadata: dict[str, str], complaint: str) -> None:
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
    if written is not None and written not in _architectures(network):
        raise ModelError(f"{complaint} its names and shapes fit, but it was written for another architecture")


def _architectures(network: nn.Module) -> Iterator[str]:
    """The hashes that a run with these weights could have had: another part of them may have trained there."""
    for trainable in TRAINABLE:
        with suppress(ModelError):  # this network has no such part
            yield _architecture_sha256(network, _not_exchanged(network, trainable))


def _not_exchanged(network: nn.Module, trainable: str) -> frozenset[str]:
    """All that each site must have already: parameters and buffers that do not travel."""
    return frozenset(network.state_dict()) - set(exchanged_names(network, trainable))


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
        raise ModelError(f"{type(layer).__name__}: the registry cannot describe such a layer")
    values = {name: getattr(layer, name) for kind in known for name in HYPER_PARAMETERS[kind]}
    if ours and not known:
        values |= {
            name: value
            for name, value in vars(layer).items()
            if not name.startswith("_") and name != "training" and isinstance(value, (bool, int, float, str, tuple))
        }
    return values
