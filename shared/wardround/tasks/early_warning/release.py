"""Releases of a federation that trained an early warning: counts of risk scores and the trained weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from wardround.metrics.calibration import fit_calibration
from wardround.metrics.noised_auc import ScoreHistogram
from wardround.study.load import Study

SCORES_LABELS = True
Weights = TypeVar("Weights")


def figures(histogram: ScoreHistogram) -> dict[str, Any]:
    """Return the calibration of the model's scores, `fitted_calibration`, or None if the noise hides the counts."""
    fitted = fit_calibration(histogram)
    return {"fitted_calibration": None if fitted is None else fitted.to_json()}


def released_weights(
    figures: Mapping[str, Any] | None, trained: Weights, start: Weights
) -> tuple[Weights, dict[str, Any]]:
    """Return the trained weights."""
    return trained, {}


def manifest(study: Study) -> dict[str, Any]:
    """Return no additional entries."""
    return {}


def card_lines(figures: Mapping[str, Any]) -> list[str]:
    """Return a line about the calibration of the scores."""
    calibrated = figures.get("fitted_calibration")
    if calibrated is None:
        return ["- probabilities are not calibrated"]
    return [
        f"- probabilities are calibrated with a temperature of {calibrated['temperature']:.2f}; a set of labels "
        f"contains the right one for {calibrated['coverage']:.0%} of such patients"
    ]
