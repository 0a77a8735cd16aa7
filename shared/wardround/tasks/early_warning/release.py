"""Releases of a federation that trained an early warning: counts of risk scores and the trained weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from wardround.metrics.noised_auc import ScoreHistogram
from wardround.sources.records.study import records_data
from wardround.sources.records.vocabulary import Variable, load_vocabulary
from wardround.study.load import Study
from wardround.tasks.early_warning.intercepts import from_histogram
from wardround.tasks.onnx_form import LOGITS, OnnxForm

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


def onnx_form(study: Study) -> OnnxForm:
    """Return the form of the ONNX file: rows of hours and variables to one logit, or to one at each hour."""
    data = records_data(study)
    event, hours = data.labels[1], data.window_hours
    reads = "hours since admission and variables in the order and units below, NaN where nothing was measured. "
    if hours > 1:
        reads += "What holds for the whole stay stands in the first hour, and a measurement is the mean of its hour. "
    outputs, logits = 1, f"(N, 1), the logit of {event} after the whole window"
    if study.model.name == "gru":
        outputs, logits = hours, f"(N, {hours}), the logit of {event} at the end of each hour"
    return OnnxForm(
        input="rows",
        dtype="float32",
        row_shape=data.row_shape,
        outputs={LOGITS: (outputs,)},
        reads=reads + "All scaling is inside",
        logits=logits,
        columns=[(one.name, _meaning(one)) for one in load_vocabulary(data.vocabulary).variables],
    )


def _meaning(variable: Variable) -> str:
    """What a number in a column is: title, unit or codes, and how the values of an hour are joined."""
    joined = {"sum": "sum of the hour", "event": "1 in an hour in which it was recorded"}.get(variable.kind)
    codes = ", ".join(f"{number} {name}" for number, name in enumerate(variable.categories))
    unit = "" if variable.unit == "1" else variable.unit
    return "; ".join(part for part in (variable.title, unit, codes, joined) if part)
