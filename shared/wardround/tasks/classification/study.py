"""The rules for studies of classification, which have no section of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wardround.tasks.registry import Commands

if TYPE_CHECKING:
    from wardround.study.load import Study

NETWORKS = ("phantom-encoder", "seed-cnn", "resnet-small", "resnet-large", "densenet121")
PHANTOM_WEIGHTS = ("phantom-encoder",)
SECTION = None
LINEAR_HEAD = {"model": {"name": "phantom-encoder"}, "data": {"channels": "grey"}}
COMMANDS = Commands(attack=True, compare="settings", onnx=True, explain=True, personalise=True)


def check(study: Study) -> None:
    """Raise `ValueError` if figures are to be released for more than two labels."""
    if study.evaluation.epsilon > 0 and len(study.data.labels) > 2:
        raise ValueError("evaluation.epsilon: figures are released for two labels only; set it to 0")


def learns(study: Study, labels: str) -> str:
    """Return the end of the sentence "This study trains a network ..."."""
    return f"to tell {labels} apart"
