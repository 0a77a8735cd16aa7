"""The networks for early warning, with their initial weights.

`model.init = "phantom"` is the public start: weights written by hand for the heads, and for `gru` weights that were
trained on simulated stays.
"""

from __future__ import annotations

from pathlib import Path

from torch import nn

from wardround.errors import ModelError
from wardround.networks.fingerprint import load_strictly
from wardround.networks.model_file import read_model_file
from wardround.sources.records.study import RecordsData
from wardround.sources.records.vocabulary import Vocabulary, load_vocabulary
from wardround.study.schema import DataSection, ModelSection, Section
from wardround.tasks.early_warning.hourly_gru import HourlyGRU, load_simulated_start
from wardround.tasks.early_warning.public_head import severity_head, tabular_head


def first_weights(model: ModelSection, data: DataSection, section: Section | None) -> nn.Module:
    """Return the network of `model.name` with the weights of `model.init`: random, public, or those of a file."""
    if not isinstance(data, RecordsData):
        raise ModelError(f"model.name: {model.name} reads records, not images")
    vocabulary = load_vocabulary(data.vocabulary)
    if model.init in ("random", "phantom"):
        return _network(model.name, vocabulary, public_start=model.init == "phantom")
    path = Path(model.init)
    tensors, metadata = read_model_file(path, model.init_sha256)
    if model.name == "gru" and "tensors_sha256" in metadata:  # a file that `wardround-sim pretrain` wrote
        return _gru(vocabulary, public_start=True, path=str(path))
    network = _network(model.name, vocabulary, public_start=False)
    load_strictly(network, tensors, metadata, f"{path}: not a {model.name} for this study:")
    return network


def _network(name: str, vocabulary: Vocabulary, *, public_start: bool) -> nn.Module:
    if name == "gru":
        return _gru(vocabulary, public_start=public_start)
    return {"severity-head": severity_head, "tabular-head": tabular_head}[name](vocabulary, public_start=public_start)


def _gru(vocabulary: Vocabulary, *, public_start: bool, path: str | None = None) -> HourlyGRU:
    network = HourlyGRU(vocabulary)
    if public_start:
        load_simulated_start(network, path)
    return network
