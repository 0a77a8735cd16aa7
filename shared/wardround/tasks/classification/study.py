"""Classification in a study: a network that tells labels apart. It has no section of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wardround.tasks.registry import Commands

if TYPE_CHECKING:
    from wardround.study.load import Study

NETWORKS = ("phantom-encoder", "seed-cnn", "resnet-small", "resnet-large", "densenet121")
PHANTOM_WEIGHTS = ("phantom-encoder",)
SECTION = None
COMMANDS = Commands(attack=True, compare="settings")


def check(study: Study) -> None:
    """Figures are released for two labels only."""
    if study.evaluation.epsilon > 0 and len(study.data.labels) > 2:
        raise ValueError("evaluation.epsilon: figures are released for two labels only; set it to 0")


def learns(study: Study, labels: str) -> str:
    """What the study trains a network for."""
    return f"to tell {labels} apart"
