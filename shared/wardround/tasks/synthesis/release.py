"""Releases of a federation that trained a model of images: counts of label scores and the trained weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from wardround.metrics.noised_auc import ScoreHistogram
from wardround.study.load import Study

SCORES_LABELS = True
Weights = TypeVar("Weights")


def figures(histogram: ScoreHistogram) -> dict[str, Any]:
    """Return no figures beyond those of the scores."""
    return {}


def released_weights(
    figures: Mapping[str, Any] | None, trained: Weights, start: Weights
) -> tuple[Weights, dict[str, Any]]:
    """Return the trained weights."""
    return trained, {}


def manifest(study: Study) -> dict[str, Any]:
    """Return no additional entries."""
    return {}


def card_lines(figures: Mapping[str, Any]) -> list[str]:
    """Return no lines beyond those about the scores."""
    return []
