"""Calibration of a model's probabilities, estimated from noised histograms of scores (`noised_auc`).

The probability in the middle of a bin is used as the prediction for all patients in it. Shapes: B bins, G groups of
neighbouring bins, few enough that their counts exceed the noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from wardround.metrics.intervals import tail_of
from wardround.metrics.noised_auc import LEAST_SIGNAL, ScoreHistogram
from wardround.metrics.score_bins import bin_centres

GROUPS = 4
_GRID = 1000


@dataclass(frozen=True, kw_only=True)
class ReliabilityPoint:
    """One group of bins: mean prediction, observed share of positives with its 95 % interval, and patients."""

    predicted: float
    observed: float
    low: float
    high: float
    patients: float


@dataclass(frozen=True, kw_only=True)
class CalibrationEstimate:
    """The calibration of a model over all patients and by group of bins.

    `excess` is the mean probability minus the share of positives, unbiased, with its 95 % interval from `low` to
    `high`. `ece` is the expected calibration error over the groups, partly corrected for noise, which can only make it
    larger; `ece_if_perfect` is its mean for a perfectly calibrated model, so only an `ece` well above it is a finding.
    `points` leaves out groups whose counts do not exceed the noise.
    """

    excess: float
    low: float
    high: float
    ece: float
    ece_if_perfect: float
    points: tuple[ReliabilityPoint, ...]


def calibration_estimate(histogram: ScoreHistogram, confidence: float = 0.95) -> CalibrationEstimate | None:
    """Estimate the calibration over all patients and by group; None if a label's count does not exceed the noise."""
    if not histogram.both_labels:
        return None
    v, bins = histogram.noise_variance, histogram.bins
    told_B = bin_centres(bins, histogram.logit_scale)
    n_B, p_B = histogram.negatives_B(), histogram.positives_B()
    patients, z = n_B.sum() + p_B.sum(), NormalDist().inv_cdf(1 - tail_of(confidence))
    gap_B = told_B * n_B - (1 - told_B) * p_B
    # the variance of the noise in both cells, plus that of the labels if the probability is right
    variance_B = v * (told_B**2 + (1 - told_B) ** 2) + np.maximum(n_B + p_B, 0) * told_B * (1 - told_B)
    reach = z * math.sqrt(variance_B.sum())
    groups = [np.asarray(group) for group in np.array_split(np.arange(bins), GROUPS)]
    gap_G = np.array([gap_B[group].sum() for group in groups])
    spread_G = np.sqrt([variance_B[group].sum() for group in groups])
    ece = sum(_length_without_noise(gap, spread) for gap, spread in zip(gap_G, spread_G, strict=True))
    # mean of _length_without_noise at a gap of 0: 2 E|Z| - E|Z + Z'|, Z and Z' standard normal
    by_chance = (2 - math.sqrt(2)) * math.sqrt(2 / math.pi) * spread_G.sum()
    return CalibrationEstimate(
        excess=float(gap_B.sum() / patients),
        low=float((gap_B.sum() - reach) / patients),
        high=float((gap_B.sum() + reach) / patients),
        ece=float(max(0.0, ece / patients)),
        ece_if_perfect=float(by_chance / patients),
        points=tuple(
            point for group in groups if (point := _point(told_B[group], n_B[group], p_B[group], v, z)) is not None
        ),
    )


def _length_without_noise(gap: float, spread: float) -> float:
    """Return |gap| minus the bias that normal noise of this spread causes, estimated at the noised gap itself."""
    if spread == 0:
        return abs(gap)
    ratio = gap / spread
    folded = spread * math.sqrt(2 / math.pi) * math.exp(-(ratio**2) / 2) + gap * math.erf(ratio / math.sqrt(2))
    return 2 * abs(gap) - folded


def _point(told_B: np.ndarray, n_B: np.ndarray, p_B: np.ndarray, v: float, z: float) -> ReliabilityPoint | None:
    patients, positives = n_B.sum() + p_B.sum(), p_B.sum()
    if patients < max(1.0, LEAST_SIGNAL * math.sqrt(2 * len(n_B) * v)):
        return None
    share_S = np.linspace(0.0, 1.0, _GRID + 1)
    variance_S = len(n_B) * v * ((1 - share_S) ** 2 + share_S**2) + patients * share_S * (1 - share_S)
    observed = float(np.clip(positives / patients, 0.0, 1.0))
    inside_S = np.abs(positives - share_S * patients) <= z * np.sqrt(variance_S)
    held_S = share_S[inside_S] if inside_S.any() else np.array([observed])
    likely_B = np.maximum(n_B + p_B, 0)
    return ReliabilityPoint(
        predicted=float(likely_B @ told_B / likely_B.sum()),
        observed=observed,
        low=float(min(held_S[0], observed)),
        high=float(max(held_S[-1], observed)),
        patients=float(patients),
    )
