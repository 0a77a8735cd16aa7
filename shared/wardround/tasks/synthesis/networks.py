"""The networks for synthesis, with their initial weights."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from wardround.errors import ModelError
from wardround.networks.fingerprint import load_strictly
from wardround.networks.model_file import read_model_file
from wardround.sources.images.study import ImageData
from wardround.study.schema import ModelSection, Section
from wardround.tasks.synthesis.gan import SharedGAN, phantom_gan
from wardround.tasks.synthesis.phantom_sampler import phantom_sampler


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
    sampler = model.name == "phantom-sampler"  # its bank is the shipped one, which a run's file does not contain
    network = _from_phantoms(model, data, None) if sampler else _from_scratch(model, data)
    load_strictly(network, tensors, metadata, f"{path}: not a {model.name} for this study:")
    return network


def _from_scratch(model: ModelSection, data: ImageData) -> nn.Module:
    if model.name != "dcgan":
        raise ModelError(f"model.init: {model.name} is made of public phantoms; use 'phantom', or a file of a run")
    return SharedGAN(data.image_size, data.channel_count, len(data.labels))


def _from_phantoms(model: ModelSection, data: ImageData, path: str | None) -> nn.Module:
    if model.name == "phantom-sampler":
        return phantom_sampler(data.labels, path)
    return phantom_gan(data.image_size, data.channel_count, data.labels, path)
