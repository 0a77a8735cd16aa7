"""Classification metrics on labelled images: the figures of a test set, calibration, scores by patient.

This module re-exports all metrics: AUC and ROC are defined in `ranking`, intervals over patients in `intervals`.

Shapes: N rows (images, or whatever the unit is), P patients, K labels, B bins. scores_N are probabilities of the label
1; labels_N are 0 or 1 (0..K-1 with scores_NK); patients_N is the patient of each row. The AUC is undefined if only one
class is present: the functions then return None. Invalid shapes, labels or scores raise `ValueError`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from wardround.metrics.intervals import Estimate, RocBand, auc_interval, bootstrap, numbered, roc_band, tail_of
from wardround.metrics.ranking import RocCurve, auc, checked, macro_auc, roc_curve, sensitivity_at_specificity

__all__ = [
    "CalibrationCurve",
    "Estimate",
    "RocBand",
    "RocCurve",
    "TestFigures",
    "accuracy",
    "auc",
    "auc_interval",
    "bootstrap",
    "brier",
    "calibration_curve",
    "expected_calibration_error",
    "logits",
    "macro_auc",
    "patient_scores",
    "probabilities",
    "roc_band",
    "roc_curve",
    "sensitivity_at_specificity",
    "summary",
]

Unit = Literal["slice", "nodule", "patient"]

CALIBRATION_BINS = 10


@dataclass(frozen=True, kw_only=True)
class CalibrationCurve:
    """Calibration in bins of equal width, without empty bins: mean score, observed share, its interval and counts."""

    mean_score_B: np.ndarray
    observed_B: np.ndarray
    low_B: np.ndarray
    high_B: np.ndarray
    images_B: np.ndarray
    patients_B: np.ndarray


@dataclass(frozen=True, kw_only=True)
class TestFigures:
    """The figures of a test set in `result.json`: `images` and `patients` with a label, `positives` in units."""

    unit: Unit
    auc: float | None
    auc_ci95: tuple[float, float] | None
    patients: int
    images: int
    positives: int | None
    ece: float | None

    def to_json(self) -> dict[str, Any]:
        """Return a dict of plain numbers, lists, strings and None."""
        return {**asdict(self), "auc_ci95": None if self.auc_ci95 is None else list(self.auc_ci95)}


def probabilities(logits: ArrayLike) -> np.ndarray:
    """Convert logits (N,) or (N, 1) to probabilities of the label 1 (N,), and logits (N, K) to probabilities (N, K).

    The computation is in float64: in float32 every logit above 17 would give 1, so that ordered scores become ties.
    """
    logits = np.asarray(logits, dtype=np.float64)
    if logits.ndim == 2 and logits.shape[1] > 1:
        odds_NK = np.exp(logits - logits.max(axis=1, keepdims=True))
        return odds_NK / odds_NK.sum(axis=1, keepdims=True)
    logits_N = logits.reshape(len(logits))
    small_N = np.exp(-np.abs(logits_N))
    return np.where(logits_N >= 0, 1.0, small_N) / (1.0 + small_N)


def logits(probabilities_N: ArrayLike) -> np.ndarray:
    """Convert probabilities (N,) to logits, float64; those of 0 and 1 are finite, at about -28 and 28."""
    kept_N = np.clip(np.asarray(probabilities_N, dtype=np.float64), 1e-12, 1 - 1e-12)
    return np.log(kept_N) - np.log1p(-kept_N)


def accuracy(scores_N: ArrayLike, labels_N: ArrayLike, threshold: float = 0.5) -> float | None:
    """Share of rows whose label agrees with whether the score is at least `threshold`; None without a row."""
    scores_N, positive_N = checked(scores_N, labels_N)
    return float(((scores_N >= threshold) == positive_N).mean()) if len(scores_N) else None


def patient_scores(
    scores_N: ArrayLike, labels_N: ArrayLike, patients_N: ArrayLike
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return scores_P, labels_P and patients_P by ascending patient.

    A patient's score is the highest of its scores; its label is 1 if any of its labels is 1.
    """
    scores_N, positive_N = checked(scores_N, labels_N)
    patient_N, patients = numbered(patients_N, len(scores_N))
    scores_P, positive_P = np.full(patients, -np.inf), np.zeros(patients, dtype=bool)
    np.maximum.at(scores_P, patient_N, scores_N)
    np.logical_or.at(positive_P, patient_N, positive_N)
    return scores_P, positive_P.astype(np.int64), np.unique(np.asarray(patients_N))


def brier(scores_N: ArrayLike, labels_N: ArrayLike) -> float:
    """Mean squared difference of probability and event (G. W. Brier 1950): 0 is perfect; a constant 0.5 gives 0.25."""
    scores_N, positive_N = _probable(scores_N, labels_N)
    return float(np.square(scores_N - positive_N).mean())


def expected_calibration_error(scores: ArrayLike, labels_N: ArrayLike, bins: int = CALIBRATION_BINS) -> float:
    """Mean gap between probability and observed share, over bins of equal width (Guo et al. 2017, eq. 3).

    With scores_N, the probability of the label 1 is compared with the share of label 1. With scores_NK, the probability
    of the likeliest label is compared with how often that label is right.
    """
    scores_N, positive_N = _probable(*_top_label(scores, labels_N))
    bin_N = np.minimum((scores_N * bins).astype(np.int64), bins - 1)
    gap_B = np.bincount(bin_N, weights=scores_N - positive_N, minlength=bins)
    return float(np.abs(gap_B).sum() / len(scores_N))


def calibration_curve(
    scores_N: ArrayLike,
    labels_N: ArrayLike,
    patients_N: ArrayLike,
    bins: int = CALIBRATION_BINS,
    confidence: float = 0.95,
) -> CalibrationCurve:
    """Return the observed share of label 1 and the mean probability in bins of equal width.

    The interval is Wilson's (1927), with the number of patients in the bin as the number of trials, so that many slices
    of one patient do not narrow it.
    """
    scores_N, positive_N = _probable(scores_N, labels_N)
    patient_N, patients = numbered(patients_N, len(scores_N))
    bin_N = np.minimum((scores_N * bins).astype(np.int64), bins - 1)
    images_B = np.bincount(bin_N, minlength=bins)
    filled_B = images_B > 0
    images_B = images_B[filled_B]
    mean_B = np.bincount(bin_N, weights=scores_N, minlength=bins)[filled_B] / images_B
    observed_B = np.bincount(bin_N, weights=positive_N, minlength=bins)[filled_B] / images_B
    patients_B = np.bincount(np.unique(bin_N * patients + patient_N) // patients, minlength=bins)[filled_B]
    z = NormalDist().inv_cdf(1 - tail_of(confidence))
    centre_B = (observed_B + z**2 / (2 * patients_B)) / (1 + z**2 / patients_B)
    spread_B = np.sqrt(observed_B * (1 - observed_B) / patients_B + z**2 / (4 * patients_B**2))
    reach_B = z * spread_B / (1 + z**2 / patients_B)
    return CalibrationCurve(
        mean_score_B=mean_B,
        observed_B=observed_B,
        low_B=np.clip(centre_B - reach_B, 0.0, observed_B),
        high_B=np.clip(centre_B + reach_B, observed_B, 1.0),
        images_B=images_B,
        patients_B=patients_B,
    )


def summary(scores: ArrayLike, labels_N: ArrayLike, patients_N: ArrayLike, unit: Unit) -> TestFigures:
    """Compute the figures of one test set.

    Args:
        scores: scores_N, the probabilities of the label 1, or scores_NK, those of each label; with scores_NK the AUC is
            `macro_auc`.
        labels_N: The labels. A negative label means that the row has no label; such rows are left out.
        patients_N: The patient of each row.
        unit: "patient" first merges each patient's rows by `patient_scores` (two labels only); "slice" and "nodule" use
            the rows unchanged.
    """
    scores, labels_N, patients_N = np.asarray(scores, dtype=np.float64), np.asarray(labels_N), np.asarray(patients_N)
    if not (labels_N.ndim == 1 and labels_N.shape == patients_N.shape == scores.shape[:1]):
        raise ValueError("scores, labels and patients must have one entry a row")
    labelled_N = labels_N >= 0
    scores, labels_N, patients_N = scores[labelled_N], labels_N[labelled_N], patients_N[labelled_N]
    images, patients = len(labels_N), len(np.unique(patients_N))
    if scores.ndim == 2:
        if unit == "patient":
            raise ValueError("a patient's score is defined for two labels")
        area, positives = bootstrap(macro_auc, scores, labels_N, patients_N), None
    else:
        if unit == "patient":
            scores, labels_N, patients_N = patient_scores(scores, labels_N, patients_N)
        area, positives = auc_interval(scores, labels_N, patients_N), int(labels_N.sum())
    return TestFigures(
        unit=unit,
        auc=None if area is None else area.value,
        auc_ci95=None if area is None else (area.low, area.high),
        patients=patients,
        images=images,
        positives=positives,
        ece=expected_calibration_error(scores, labels_N) if images else None,
    )


def _probable(scores_N: ArrayLike, labels_N: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    scores_N, positive_N = checked(scores_N, labels_N)
    if not len(scores_N) or scores_N.min() < 0 or scores_N.max() > 1:
        raise ValueError("needs at least one probability, and each must lie between 0 and 1")
    return scores_N, positive_N


def _top_label(scores: ArrayLike, labels_N: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """For scores (N, K), return those of the likeliest label and whether it is right; return vectors unchanged."""
    scores, labels_N = np.asarray(scores, dtype=np.float64), np.asarray(labels_N)
    if scores.ndim != 2:
        return scores, labels_N
    return scores.max(axis=1), scores.argmax(axis=1) == labels_N
