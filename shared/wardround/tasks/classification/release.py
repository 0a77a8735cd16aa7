"""Releases of a federation that trained a classifier: counts of label scores and the trained weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from wardround.metrics.calibration import fit_calibration
from wardround.metrics.noised_auc import ScoreHistogram
from wardround.sources.images.study import image_data
from wardround.study.load import Study
from wardround.tasks.onnx_form import DISTANCE, LOGITS, OnnxForm

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


def onnx_form(study: Study) -> OnnxForm:
    """Return the form of the ONNX file: images, as uint8, to the logits of labels and a distance."""
    labels, data = study.data.labels, image_data(study)
    outputs = 1 if len(labels) == 2 else len(labels)
    return OnnxForm(
        input="images",
        dtype="uint8",
        row_shape=data.shape_CHW,
        outputs={LOGITS: (outputs,), DISTANCE: ()},
        reads="grey values 0..255 in the window of the study; all other preprocessing is inside",
        logits=f"(N, 1), the logit of {labels[1]}" if outputs == 1 else f"(N, {outputs}), the logit of each label",
    )
