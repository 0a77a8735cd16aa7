"""The rules for studies of early warning, which have no section of their own: window and horizon stand in `[data]`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wardround.sources.records.study import records_data
from wardround.tasks.registry import Commands

if TYPE_CHECKING:
    from wardround.study.load import Study

SOURCE = "records"
NETWORKS = ("severity-head", "gru", "tabular-head")
PHANTOM_WEIGHTS = NETWORKS
PUBLIC_START = {
    "severity-head": "weights written by hand from medical knowledge, without any patient",
    "tabular-head": "weights written by hand from medical knowledge, without any patient",
    "gru": "weights learned from simulated stays",
}
SECTION = None
LINEAR_HEAD = {"model": {"name": "tabular-head"}, "data": {"window_hours": 1}}
COMMANDS = Commands(attack=True, compare="settings", phantoms=True, onnx=True, personalise=True)


def check(study: Study) -> None:
    """Raise `ValueError` if the network does not fit the data or the rest of the study."""
    data, model = records_data(study), study.model
    if model.name == "severity-head" and data.vocabulary != "icu":
        raise ValueError(f"model.name: severity-head reads the vocabulary icu, not {data.vocabulary}")
    if model.name == "tabular-head" and data.window_hours != 1:
        raise ValueError("data.window_hours: tabular-head reads tables of one row a patient; set it to 1")
    if model.name == "gru" and data.window_hours < 2:
        raise ValueError("data.window_hours: gru reads hours; give more than 1, or use tabular-head")
    if model.name == "gru" and model.init == "phantom" and data.vocabulary != "icu":
        raise ValueError(f"model.init: the public start of gru is for the vocabulary icu, not {data.vocabulary}")
    if model.name != "gru" and model.trainable != "head":
        raise ValueError(f"model.trainable: {model.name} trains its head only; set it to head")
    if model.trainable == "norm+head":
        raise ValueError("model.trainable: gru has no normalisation layers; use head or all")
    personal = study.personalisation
    if personal is not None and model.name != "gru" and personal.trainable != "head":
        raise ValueError(f"personalisation.trainable: {model.name} trains its head only; set it to head")
    if personal is not None and personal.trainable == "norm+head":
        raise ValueError("personalisation.trainable: gru has no normalisation layers; use head or all")
    if study.training.augmentation != "none":
        raise ValueError("training.augmentation: there is none for records; set it to none")


def learns(study: Study, labels: str) -> str:
    """Return the end of the sentence "This study trains a network ..."."""
    data = records_data(study)
    hours = f"the first {data.window_hours} hours" if data.window_hours > 1 else "one row of values"
    within = f" within {data.horizon_hours:g} hours after that" if data.horizon_hours is not None else ""
    return f"to estimate from {hours} of a patient's records which outcome follows{within}: {labels}"
