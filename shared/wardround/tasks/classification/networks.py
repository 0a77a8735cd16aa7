"""The networks for classification, with their initial weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import nn

from wardround.errors import ModelError
from wardround.networks.densenet import DenseNet121
from wardround.networks.fingerprint import load_strictly
from wardround.networks.model_file import read_model_file
from wardround.networks.phantom_encoder import load_phantom_encoder
from wardround.networks.public_head import PhantomHead, PhantomNetwork, phantom_network
from wardround.networks.resnet import LARGE_WIDTHS, SMALL_WIDTHS, ResNet
from wardround.networks.seed_cnn import SeedCNN
from wardround.sources.images.study import ImageData
from wardround.study.schema import ModelSection, Section

SMALLEST_IMAGE_PX = {"densenet121": 32}
FROM_SCRATCH: dict[str, Callable[[ImageData, int], nn.Module]] = {
    "phantom-encoder": lambda data, outputs: PhantomNetwork(outputs),
    "seed-cnn": lambda data, outputs: SeedCNN(data.channel_count, data.image_size, outputs),
    "resnet-small": lambda data, outputs: ResNet(data.channel_count, SMALL_WIDTHS, outputs),
    "resnet-large": lambda data, outputs: ResNet(data.channel_count, LARGE_WIDTHS, outputs),
    "densenet121": lambda data, outputs: DenseNet121(data.channel_count, outputs),
}


def first_weights(model: ModelSection, data: ImageData, section: Section | None) -> nn.Module:
    """Return the network of `model.name` with the weights of `model.init`: random, phantom, or those of a file."""
    if model.init == "random":
        return _from_scratch(model, data)
    if model.init == "phantom":
        return _from_phantoms(model, data, None)
    path = Path(model.init)
    tensors, metadata = read_model_file(path, model.init_sha256)
    if "tensors_sha256" in metadata:  # a file that `wardround-sim pretrain` wrote
        return _from_phantoms(model, data, str(path))
    network = _from_phantoms(model, data, None) if _is_phantom_head(model) else _from_scratch(model, data)
    load_strictly(network, tensors, metadata, f"{path}: not a {model.name} for this study:")
    return network


def _from_scratch(model: ModelSection, data: ImageData) -> nn.Module:
    if data.image_size < SMALLEST_IMAGE_PX.get(model.name, 0):
        raise ModelError(f"data.image_size: {model.name} needs {SMALLEST_IMAGE_PX[model.name]} pixels or more")
    return FROM_SCRATCH[model.name](data, 1 if len(data.labels) == 2 else len(data.labels))


def _from_phantoms(model: ModelSection, data: ImageData, path: str | None) -> nn.Module:
    encoder, public = load_phantom_encoder(path)
    return PhantomHead(public, data.labels) if _is_phantom_head(model) else phantom_network(encoder, data.labels)


def _is_phantom_head(model: ModelSection) -> bool:
    """Return whether the model is a head over the frozen public features.

    A random encoder has no public features; its head reads its pooled maps.
    """
    return model.name == "phantom-encoder" and model.trainable == "head" and model.init != "random"
