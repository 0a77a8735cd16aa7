"""What a classifier says about images, lesions and patients: probabilities, label sets and decisions, or a refusal.

A patient's score is the highest logit of the patient's images, as it was when the federation measured and calibrated
the model. Images that the model does not know are refused and do not count. This module needs no torch.

Shapes: N images, K labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from wardround.errors import ModelError
from wardround.metrics.calibration import Calibration, calibration_from
from wardround.metrics.classification import probabilities


@dataclass(frozen=True, kw_only=True)
class OperatingPoint:
    """A threshold on the uncalibrated probability, and what the federation measured there on held-out patients."""

    specificity: float
    sensitivity: float
    low: float
    high: float
    threshold: float


@dataclass(frozen=True, kw_only=True)
class Rules:
    """How outputs of the network become statements: labels, limit of the distance, calibration, operating points.

    `calibration` is None if the federation released no figures, or for more than two labels.
    """

    labels: tuple[str, ...]
    farthest: float
    calibration: Calibration | None
    points: tuple[OperatingPoint, ...]


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Whether a score reaches an operating point."""

    point: OperatingPoint
    positive: bool


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What the model says about one image, lesion or patient.

    `probabilities` has one number a label. `interval` is that of the last label's probability and covers the
    uncertainty of the calibration; `label_set` are the labels that the score does not rule out. Both are None without
    a calibration.
    """

    logits: tuple[float, ...]
    probabilities: tuple[float, ...]
    interval: tuple[float, float] | None
    label_set: tuple[str, ...] | None
    decisions: tuple[Decision, ...]

    def to_json(self, labels: Sequence[str]) -> dict[str, Any]:
        """Return plain values."""
        return {
            "probabilities": dict(zip(labels, self.probabilities, strict=True)),
            "interval": None if self.interval is None else list(self.interval),
            "label_set": None if self.label_set is None else list(self.label_set),
            "decisions": [
                {"specificity": one.point.specificity, "sensitivity": one.point.sensitivity, "positive": one.positive}
                for one in self.decisions
            ],
            "logits": list(self.logits),
        }


def rules_of(record: Mapping[str, Any]) -> Rules:
    """Read the rules from a model's record (model.json). Raises `ModelError` if they are damaged."""
    try:
        calibrated, figures = record["calibration"], record["federated_test"] or {}
        points = tuple(
            OperatingPoint(**{name: float(row[name]) for name in OperatingPoint.__dataclass_fields__})
            for row in figures.get("thresholds") or ()
        )
        if not all(0 <= value <= 1 for point in points for value in vars(point).values()):
            raise ValueError("a share is not between 0 and 1")
        return Rules(
            labels=tuple(record["labels"]),
            farthest=float(record["familiarity"]["threshold"]),
            calibration=None if calibrated is None else calibration_from(calibrated),
            points=points,
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        raise ModelError("model.json: its calibration or figures are damaged; export the model again") from None


def is_known(distance_N: np.ndarray, rules: Rules) -> np.ndarray:
    """Return whether each image resembles those that the model knows, bool (N,)."""
    return np.asarray(distance_N) <= rules.farthest


def prediction_of(logits_NK: np.ndarray, rules: Rules) -> Prediction:
    """Return what the model says about the images of one lesion or patient, or about one image.

    With two labels, the highest of the logits counts. With more, the probabilities of the images are averaged.
    """
    if logits_NK.shape[1] > 1:
        mean_K = probabilities(logits_NK).mean(axis=0)
        return Prediction(
            logits=tuple(float(x) for x in np.log(np.maximum(mean_K, 1e-300))),
            probabilities=tuple(float(p) for p in mean_K),
            interval=None,
            label_set=None,
            decisions=(),
        )
    logit = float(logits_NK.max())
    plain = float(probabilities([logit])[0])
    decisions = tuple(Decision(point=point, positive=plain >= point.threshold) for point in rules.points)
    calibration = rules.calibration
    if calibration is None:
        return Prediction(
            logits=(logit,), probabilities=(1 - plain, plain), interval=None, label_set=None, decisions=decisions
        )
    shown = float(calibration.probability([logit])[0])
    low, high = (float(end[0]) for end in calibration.interval([logit]))
    inside = calibration.label_sets([logit])[0]
    return Prediction(
        logits=(logit,),
        probabilities=(1 - shown, shown),
        interval=(low, high),
        label_set=tuple(label for label, possible in zip(rules.labels, inside, strict=True) if possible),
        decisions=decisions,
    )
