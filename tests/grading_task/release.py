"""What leaves a federation that trained a grading network: its weights, and no figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from wardround.metrics.noised_auc import ScoreHistogram
from wardround.study.load import Study

SCORES_LABELS = False
Weights = TypeVar("Weights")


def figures(histogram: ScoreHistogram) -> dict[str, Any]:
    """None: `study.check` refuses a budget for figures."""
    return {}


def released_weights(
    figures: Mapping[str, Any] | None, trained: Weights, start: Weights
) -> tuple[Weights, dict[str, Any]]:
    """The trained weights."""
    return trained, {}


def manifest(study: Study) -> dict[str, Any]:
    """The grades, for programs that use the model."""
    return {"grades": list(study.data.labels)}


def card_lines(figures: Mapping[str, Any]) -> list[str]:
    """No lines."""
    return []
