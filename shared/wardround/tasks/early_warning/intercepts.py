"""A site's own intercept: the shift of all logits at which the mean risk is the share of events that the site counted.

A count of events among a known number of patients changes by 1 at most if one patient is added or removed. With noise
of a two-sided geometric distribution of parameter epsilon it is (epsilon, 0)-differentially private for that patient,
and everything computed from it and from public numbers is post-processing (Ghosh, Roughgarden, Sundararajan 2012).

Shapes: N patients.
"""

from __future__ import annotations

import math

import numpy as np

from wardround.metrics.noised_auc import ScoreHistogram
from wardround.metrics.score_bins import bin_centres

LARGEST_SHIFT = 5.0  # of a logit: a count of zero events would else give minus infinity
STEPS = 60  # of a bisection


def noised_count(events: int, epsilon: float, uniform: tuple[float, float]) -> float:
    """The number of events plus two-sided geometric noise of parameter `epsilon`; exact for epsilon = inf.

    `uniform` are two numbers in [0, 1) from the site's secret randomness. The noise is the difference of two geometric
    numbers, P(k) = (1 - a) a^k with a = exp(-epsilon).
    """
    if math.isinf(epsilon):
        return float(events)
    first, second = (math.floor(math.log1p(-one) / -epsilon) for one in uniform)
    return float(events + first - second)


def count_noise(epsilon: float) -> float:
    """The standard deviation of the noise of `noised_count`."""
    share = math.exp(-epsilon)
    return math.sqrt(2 * share) / (1 - share)


def at_site(scores_N: np.ndarray, events: float) -> float:
    """The shift of the logits of risks `scores_N` at which their sum is `events`, between plus and minus 5.

    `events` is a count, perhaps noised: it is kept between half an event and all but half of one.
    """
    if not len(scores_N):
        return 0.0
    wanted = min(max(events, 0.5), len(scores_N) - 0.5)
    low, high = -LARGEST_SHIFT, LARGEST_SHIFT
    for _ in range(STEPS):
        middle = (low + high) / 2
        if calibrated_scores(scores_N, middle).sum() < wanted:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def from_histogram(histogram: ScoreHistogram) -> float | None:
    """The shift of all logits at which the expected events in noised counts of scores are those counted.

    It is computed from counts that were released and charged, so that it costs no more. None if the noise hides the
    counts.
    """
    if not histogram.both_labels:
        return None
    patients_B = histogram.negatives_B() + histogram.positives_B()
    centres_B = bin_centres(histogram.bins, histogram.logit_scale)
    events = float(histogram.positives_B().sum())
    low, high = -LARGEST_SHIFT, LARGEST_SHIFT
    for _ in range(STEPS):
        middle = (low + high) / 2
        if patients_B @ calibrated_scores(centres_B, middle) < events:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def calibrated_scores(scores_N: np.ndarray, shift: float) -> np.ndarray:
    """Risks whose logits are shifted."""
    odds_N = np.clip(scores_N, 1e-12, 1 - 1e-12)
    logits_N = np.log(odds_N) - np.log1p(-odds_N) + shift
    return 1 / (1 + np.exp(-logits_N))
