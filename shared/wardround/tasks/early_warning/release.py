"""Releases of a federation that trained an early warning: counts of risk scores and the trained weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from wardround.metrics.noised_auc import ScoreHistogram
from wardround.study.load import Study
from wardround.tasks.early_warning.intercepts import from_histogram

SCORES_LABELS = True
Weights = TypeVar("Weights")


def figures(histogram: ScoreHistogram) -> dict[str, Any]:
    """Return the intercept that puts the level of the risks right, `fitted_calibration`, or None if the noise hides
    the counts.

    Clipping lowers the level of all risks; a temperature, as classification fits it, could not raise it again.
    """
    shift = from_histogram(histogram)
    return {"fitted_calibration": None if shift is None else {"intercept": shift}}


def released_weights(
    figures: Mapping[str, Any] | None, trained: Weights, start: Weights
) -> tuple[Weights, dict[str, Any]]:
    """Return the trained weights."""
    return trained, {}


def manifest(study: Study) -> dict[str, Any]:
    """Return no additional entries."""
    return {}


def card_lines(figures: Mapping[str, Any]) -> list[str]:
    """Return a line about the level of the risks."""
    calibrated = figures.get("fitted_calibration")
    if calibrated is None:
        return ["- risks are not calibrated: they are lower than the share of events, because of the clipping"]
    return [
        f"- the level of the risks is calibrated on noised counts: logits are shifted by {calibrated['intercept']:+.2f}"
    ]
