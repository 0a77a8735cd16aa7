"""Figures from noised histograms of scores: AUC, ROC and thresholds, with intervals that account for the noise.

Each site counts its patients by label and score bin (`score_bins`) and adds noise of a known variance to every cell;
these functions use only the sum over sites. Negative counts are kept: clipping them would bias every figure.

The AUC is a ratio of bilinear forms, p'Wn / (P N) with p, n the counts of the two labels and P, N their sums. W counts
a pair won as 1 and a tie as 1/2, and adds 1/12 for neighbouring bins in the right order and -1/12 for the wrong order:
if the densities in a bin have slopes a and b, the true share is 1/2 + (a - b)/12, and central differences of the counts
estimate the slopes. This removes the bias of the bins to second order. The intervals are Fieller's (1954): they contain
theta if p'(W - theta 11')n, whose mean is exactly 0 at the true theta, is within z standard deviations of 0.

Shapes: B bins; counts_2B has the negatives in row 0 and the positives in row 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from wardround.metrics.intervals import PRIOR_PATIENTS, tail_of, unclustered_variance
from wardround.metrics.score_bins import probability_at

GRID = 4000  # grid steps between 0 and 1 for the ends of an interval, which are rounded outwards
_STEPS_IN_A_BIN = 8
LEAST_SIGNAL = 2.0  # minimum of a label's noised total, in standard deviations of its noise, for figures to be computed


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoreHistogram:
    """Patients by label and score bin, with noise of `noise_variance` in every cell (0: exact counts)."""

    counts_2B: np.ndarray
    noise_variance: float
    logit_scale: float

    @property
    def bins(self) -> int:
        return self.counts_2B.shape[1]

    def negatives_B(self) -> np.ndarray:
        return self.counts_2B[0].astype(np.float64)

    def positives_B(self) -> np.ndarray:
        return self.counts_2B[1].astype(np.float64)

    @property
    def both_labels(self) -> bool:
        """Whether the counts of both labels exceed the noise, so that figures about them are meaningful."""
        least = max(1.0, LEAST_SIGNAL * math.sqrt(self.bins * self.noise_variance))
        return bool((self.counts_2B.sum(axis=1) >= least).all())


@dataclass(frozen=True, kw_only=True)
class AucEstimate:
    """An AUC and its two 95 % intervals.

    `low` to `high` is for the AUC in the population from which the patients come; `low_here` to `high_here` is for the
    exact AUC of these patients only, which is uncertain because of the noise and the bins alone. `tied_pairs` is the
    share of pairs within one bin, whose order is unknown: if it is large, the bins are too wide for the scores
    (`evaluation.logit_scale`).
    """

    value: float
    low: float
    high: float
    low_here: float
    high_here: float
    tied_pairs: float


@dataclass(frozen=True, kw_only=True)
class ThresholdEstimate:
    """The sensitivity at a given specificity with its 95 % interval, and the probability used as the threshold."""

    specificity: float
    sensitivity: float
    low: float
    high: float
    threshold: float


def noise_variance(epsilon: float) -> float:
    """Variance of the two-sided geometric noise of a release of `epsilon`, 2 a / (1 - a)^2 with a = exp(-epsilon)."""
    share = math.exp(-epsilon)
    return 2 * share / (1 - share) ** 2 if share < 1 else math.inf


def auc_estimate(histogram: ScoreHistogram, confidence: float = 0.95) -> AucEstimate | None:
    """Estimate the AUC with both intervals; None if the count of a label does not exceed the noise.

    The value is corrected for the bias of the noisy denominator to second order. Its sampling variance is DeLong's
    from the histogram, without the bias of the noise, as a design effect on the closed form that `auc_interval` uses.
    """
    if not histogram.both_labels:
        return None
    n_B, p_B, v = histogram.negatives_B(), histogram.positives_B(), histogram.noise_variance
    weights_BB = pair_weights(histogram.bins)
    negatives, positives = n_B.sum(), p_B.sum()
    pairs, wins = negatives * positives, p_B @ weights_BB @ n_B
    beaten_B, beating_B = weights_BB @ n_B, p_B @ weights_BB
    ratio = wins / pairs
    bias = v / positives**2 * (ratio - beaten_B / negatives).sum()
    bias += v / negatives**2 * (ratio - beating_B / positives).sum()
    value = float(np.clip(ratio - bias, 0.0, 1.0))

    theta_G = np.linspace(0.0, 1.0, GRID + 1)
    noise_G = _noise_of_score(theta_G, weights_BB, n_B, p_B, v)
    likely_n, likely_p = np.maximum(n_B, 0), np.maximum(p_B, 0)
    within_bins = (likely_n * likely_p * (likely_n + likely_p + 1)).sum() / 12  # variance from the order of ties
    design = _design_effect(value, weights_BB, n_B, p_B, v)
    sampling_G = pairs**2 * design * unclustered_variance(theta_G, positives, negatives)
    score_G, z = wins - theta_G * pairs, NormalDist().inv_cdf(1 - tail_of(confidence))
    low, high = _hull(theta_G, np.abs(score_G) <= z * np.sqrt(noise_G + sampling_G), value)
    low_here, high_here = _hull(theta_G, np.abs(score_G) <= z * np.sqrt(noise_G + within_bins), value)
    tied = float(np.clip(n_B @ p_B / pairs, 0.0, 1.0))
    return AucEstimate(value=value, low=low, high=high, low_here=low_here, high_here=high_here, tied_pairs=tied)


def pair_weights(bins: int) -> np.ndarray:
    """Return W (B, B): the contribution to the AUC of a positive in bin i and a negative in bin j; see the module."""
    won = np.tril(np.ones((bins, bins)), -1) + 0.5 * np.eye(bins)
    return won + np.eye(bins, k=-1) / 12 - np.eye(bins, k=1) / 12


def roc_points(histogram: ScoreHistogram) -> tuple[np.ndarray, np.ndarray] | None:
    """Return false and true positive rates (B + 1,) at the bins' edges, from (1, 1) down to (0, 0), made monotone.

    The rates are isotonic regressions of the noised rates (Barlow, Brunk 1972), which is post-processing; use them for
    plots. Returns None if the count of a label does not exceed the noise.
    """
    if not histogram.both_labels:
        return None
    return 1 - share_below(histogram.negatives_B()), 1 - share_below(histogram.positives_B())


def sensitivity_at(
    histogram: ScoreHistogram, specificity: float = 0.9, confidence: float = 0.95
) -> ThresholdEstimate | None:
    """Estimate the sensitivity at the threshold with this specificity, by linear interpolation within a bin.

    The interval is a profile interval: it contains a sensitivity if some threshold explains both the negatives below it
    and the positives above it, that is, if the sum of the two squared scores, standardised by sampling and noise, is
    within the quantile of chi-square with one degree of freedom. Returns None if the count of a label does not exceed
    the noise.
    """
    if not histogram.both_labels:
        return None
    n_B, p_B, v, bins = histogram.negatives_B(), histogram.positives_B(), histogram.noise_variance, histogram.bins
    edges = np.linspace(0.0, 1.0, bins + 1)
    rising = share_below(n_B) + 1e-12 * np.arange(bins + 1)
    at = float(np.interp(specificity, rising, edges))
    value = float(1 - np.interp(at, edges, share_below(p_B)))

    place_U = np.linspace(0.0, 1.0, bins * _STEPS_IN_A_BIN + 1)
    below_UB = np.clip(place_U[:, None] * bins - np.arange(bins), 0.0, 1.0)
    sampling = n_B.sum() * specificity * (1 - specificity)
    missed_U = (below_UB @ n_B - specificity * n_B.sum()) ** 2
    missed_U /= v * ((below_UB - specificity) ** 2).sum(axis=1) + sampling
    above_UB, share_S = 1 - below_UB, np.linspace(0.0, 1.0, GRID // 10 + 1)
    gap_US = ((above_UB @ p_B)[:, None] - share_S * p_B.sum()) ** 2
    noise_US = (above_UB**2).sum(axis=1)[:, None] - 2 * share_S * above_UB.sum(axis=1)[:, None] + bins * share_S**2
    # 1/4 allows for sampling at shares of 0 and 1, where the variance of the normal approximation vanishes
    gap_US /= v * noise_US + p_B.sum() * share_S * (1 - share_S) + 0.25
    fit_S = (missed_U[:, None] + gap_US).min(axis=0)
    low, high = _hull(share_S, fit_S <= NormalDist().inv_cdf(1 - tail_of(confidence)) ** 2, value)
    threshold = float(probability_at(at, histogram.logit_scale))
    return ThresholdEstimate(specificity=specificity, sensitivity=value, low=low, high=high, threshold=threshold)


def _noise_of_score(
    theta_G: np.ndarray, weights_BB: np.ndarray, n_B: np.ndarray, p_B: np.ndarray, v: float
) -> np.ndarray:
    """Unbiased variance, from the noise alone, of the score p'(W - theta 11')n at each theta.

    For the true counts it is v (|(W - theta)n|^2 + |(W - theta)'p|^2) + v^2 |W - theta|^2; with the noised counts each
    square is too large by v |W - theta|^2.
    """
    bins, beaten_B, beating_B = len(n_B), weights_BB @ n_B, p_B @ weights_BB
    own_G = (weights_BB**2).sum() - 2 * theta_G * weights_BB.sum() + theta_G**2 * bins**2
    of_n = (beaten_B**2).sum() - 2 * theta_G * n_B.sum() * beaten_B.sum() + theta_G**2 * bins * n_B.sum() ** 2
    of_p = (beating_B**2).sum() - 2 * theta_G * p_B.sum() * beating_B.sum() + theta_G**2 * bins * p_B.sum() ** 2
    return np.maximum(v * (of_n + of_p) - v**2 * own_G, v**2 * own_G)


def _design_effect(area: float, weights_BB: np.ndarray, n_B: np.ndarray, p_B: np.ndarray, v: float) -> float:
    """DeLong's variance over the closed form, clipped to 1/2 to 2 and shrunk towards 1 as in `auc_interval`."""
    centred_BB = weights_BB - area
    negatives, positives = max(n_B.sum(), 2.0), max(p_B.sum(), 2.0)
    of_p = p_B @ ((centred_BB @ n_B) ** 2 - v * (centred_BB**2).sum(axis=1)) / negatives**2
    of_n = n_B @ ((p_B @ centred_BB) ** 2 - v * (centred_BB**2).sum(axis=0)) / positives**2
    delong = max(of_p, 0.0) / (positives * (positives - 1)) + max(of_n, 0.0) / (negatives * (negatives - 1))
    closed = unclustered_variance(float(np.clip(area, 0.02, 0.98)), positives, negatives)
    smaller = min(positives, negatives)
    return (float(np.clip(delong / closed, 0.5, 2.0)) * smaller + PRIOR_PATIENTS) / (smaller + PRIOR_PATIENTS)


def _hull(values_G: np.ndarray, inside_G: np.ndarray, value: float) -> tuple[float, float]:
    """Return the smallest and largest values inside, extended one grid step outwards and to include `value`."""
    held_G = values_G[inside_G] if inside_G.any() else np.array([value])
    step = values_G[1] - values_G[0]
    low, high = min(held_G[0], value) - step, max(held_G[-1], value) + step
    return float(max(low, 0.0)), float(min(high, 1.0))


def share_below(counts_B: np.ndarray) -> np.ndarray:
    """Return the share of counts below each edge, (B + 1,), made monotone from 0 to 1 by pooling adjacent violators."""
    pools: list[tuple[float, int]] = []
    for share in np.cumsum(counts_B) / counts_B.sum():
        pool = (float(share), 1)
        while pools and pools[-1][0] > pool[0]:
            (before, many), (after, few) = pools.pop(), pool
            pool = ((before * many + after * few) / (many + few), many + few)
        pools.append(pool)
    rising_B = np.concatenate([np.full(many, share) for share, many in pools])
    return np.concatenate([[0.0], np.clip(rising_B[:-1], 0.0, 1.0), [1.0]])
