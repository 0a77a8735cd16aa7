"""The network for reconstruction, with its initial weights."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from wardround.networks.fingerprint import load_strictly
from wardround.networks.model_file import read_model_file
from wardround.sources.images.study import ImageData
from wardround.study.schema import ModelSection, Section
from wardround.tasks.reconstruction.restorer import Restorer, load_phantom_restorer
from wardround.tasks.reconstruction.study import ReconstructionSection


def first_weights(model: ModelSection, data: ImageData, section: Section | None) -> nn.Module:
    """Return the restorer with the weights of `model.init`: random, phantom (by degradation), or those of a file."""
    degradation = section.degradation if isinstance(section, ReconstructionSection) else None
    if model.init == "random":
        return Restorer()
    if model.init == "phantom":
        return load_phantom_restorer(degradation)
    path = Path(model.init)
    tensors, metadata = read_model_file(path, model.init_sha256)
    if "tensors_sha256" in metadata:  # a file that `wardround-sim pretrain` wrote
        return load_phantom_restorer(degradation, str(path))
    network = Restorer()
    load_strictly(network, tensors, metadata, f"{path}: not a {model.name} for this study:")
    return network
