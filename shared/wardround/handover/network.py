"""Rebuild the network of an exported model from its study and load its weights strictly."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from wardround.errors import ModelError
from wardround.handover.package import MODEL_FILE, Package, read_model
from wardround.networks.build import build_model
from wardround.networks.fingerprint import INSTALLED, architecture_sha256, load_strictly
from wardround.networks.model_file import tensors_of
from wardround.networks.weights import not_exchanged
from wardround.storage.text_file import path_text
from wardround.study.load import Study
from wardround.tasks import registry


def load_network(package: Package) -> nn.Module:
    """Return the network of a package with its released weights, in evaluation mode on the CPU.

    Raises:
        ModelError: The weights do not fit the network of the study, or the network has another architecture than the
            record says (one line).
    """
    content, path = read_model(package, MODEL_FILE), package.folder / MODEL_FILE
    network = network_with(package.study, content, path)
    if architecture_sha256(network) != package.content["architecture_sha256"]:
        raise ModelError(f"{path_text(path)}: its architecture is not the one in model.json; export the model again")
    return network


def network_with(study: Study, content: bytes, path: Path) -> nn.Module:
    """Build the network of a study and load the content of a model file into it. `path` is for error messages.

    A study that started from a file is rebuilt without this file, because the model file has every tensor of the
    network. Raises `ModelError` if the content does not fit.
    """
    where = path_text(path)
    tensors, metadata = tensors_of(content, path)
    model = study.model
    if model.init not in ("phantom", "random"):
        init = "phantom" if model.name in registry.with_phantom_weights() else "random"
        model = model.model_copy(update={"init": init, "init_sha256": None})
    network = build_model(model, study.data, study.study.seed, study.task_section)
    load_strictly(network, tensors, metadata, f"{where}: not a {model.name} for this study:")
    if study.model.init != "random":  # frozen tensors came from a file, so their values are part of the architecture
        setattr(network, INSTALLED, not_exchanged(network, model.trainable))
    return network.eval()
