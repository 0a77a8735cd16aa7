"""Ranking metrics: AUC and ROC, with ties counted as halves.

Shapes: N rows, K labels. scores_N are any numbers, higher for the label 1; labels_N are 0 or 1. AUC and ROC are
undefined if only one class is present: the functions then return None.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike


@dataclass(frozen=True, kw_only=True)
class RocCurve:
    """A point for each distinct score, from (0, 0) at threshold inf to (1, 1); positive means score >= threshold."""

    false_positive_rate: np.ndarray
    true_positive_rate: np.ndarray
    threshold: np.ndarray


def auc(scores_N: ArrayLike, labels_N: ArrayLike) -> float | None:
    """Probability that a row of label 1 scores above one of label 0, ties counting half; None if a class is missing."""
    scores_N, positive_N = checked(scores_N, labels_N)
    positives, negatives = int(positive_N.sum()), int((~positive_N).sum())
    if positives == 0 or negatives == 0:
        return None
    wins = _midranks(scores_N)[positive_N].sum() - positives * (positives + 1) / 2
    return float(wins / (positives * negatives))


def macro_auc(scores_NK: ArrayLike, labels_N: ArrayLike) -> float | None:
    """Mean one-against-the-rest AUC over the labels that have rows on both sides; None if no label has."""
    scores_NK, labels_N = np.asarray(scores_NK, dtype=np.float64), np.asarray(labels_N)
    if scores_NK.ndim != 2 or labels_N.shape != scores_NK.shape[:1]:
        raise ValueError("macro_auc needs scores (N, K) and labels (N,)")
    if len(labels_N) and not (labels_N.min() >= 0 and labels_N.max() < scores_NK.shape[1]):
        raise ValueError("labels must be columns of the scores")
    areas = [auc(scores_NK[:, label], labels_N == label) for label in range(scores_NK.shape[1])]
    known = [area for area in areas if area is not None]
    return float(np.mean(known)) if known else None


def roc_curve(scores_N: ArrayLike, labels_N: ArrayLike) -> RocCurve | None:
    """Return the ROC curve, whose area is `auc`; None if a class is missing."""
    scores_N, positive_N = checked(scores_N, labels_N)
    if positive_N.all() or not positive_N.any():
        return None
    order = np.argsort(-scores_N, kind="stable")
    ordered_N = scores_N[order]
    ends = np.flatnonzero(np.append(ordered_N[1:] != ordered_N[:-1], True))
    hits, alarms = np.cumsum(positive_N[order])[ends], np.cumsum(~positive_N[order])[ends]
    return RocCurve(
        false_positive_rate=np.append(0.0, alarms / alarms[-1]),
        true_positive_rate=np.append(0.0, hits / hits[-1]),
        threshold=np.append(np.inf, ordered_N[ends]),
    )


def sensitivity_at_specificity(scores_N: ArrayLike, labels_N: ArrayLike, specificity: float = 0.9) -> float | None:
    """Best sensitivity on these rows among thresholds with at least this specificity; None if a class is missing."""
    curve = roc_curve(scores_N, labels_N)
    if curve is None:
        return None
    return float(curve.true_positive_rate[curve.false_positive_rate <= 1 - specificity + 1e-12].max())


def placements(scores_N: np.ndarray, positive_N: np.ndarray) -> np.ndarray:
    """Share of negative rows below each positive row, or of positive rows above each negative row; ties are halves."""
    below_N, place_N = _midranks(scores_N), np.empty(len(scores_N))
    negatives, positives = (~positive_N).sum(), positive_N.sum()
    place_N[positive_N] = (below_N[positive_N] - _midranks(scores_N[positive_N])) / negatives
    place_N[~positive_N] = 1 - (below_N[~positive_N] - _midranks(scores_N[~positive_N])) / positives
    return place_N


def checked(scores_N: ArrayLike, labels_N: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Return float64 scores and boolean labels.

    Raises `ValueError` for other shapes than two equal vectors, NaN scores, and labels other than 0 and 1.
    """
    scores_N, labels_N = np.asarray(scores_N, dtype=np.float64), np.asarray(labels_N)
    if scores_N.ndim != 1 or labels_N.shape != scores_N.shape:
        raise ValueError("scores and labels must be two vectors of the same length")
    if np.isnan(scores_N).any():
        raise ValueError("a score is not a number")
    if not np.isin(labels_N, (0, 1)).all():
        raise ValueError("labels must be 0 or 1")
    return scores_N, labels_N.astype(bool)


def _midranks(values_N: np.ndarray) -> np.ndarray:
    """Ranks from 1 to N; equal values share the mean of their ranks."""
    _, inverse_N, count_U = np.unique(values_N, return_inverse=True, return_counts=True)
    return (np.cumsum(count_U) - (count_U - 1) / 2)[inverse_N]
