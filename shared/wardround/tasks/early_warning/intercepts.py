"""The intercept of one site or of a federation: the shift of all logits at which the expected events are those counted.

It is computed from the noised counts of a release (`client/wardround_client/privacy/score_noise.py`), which are
(epsilon, 0)-differentially private and were charged when they were sent. Everything computed from them and from public
numbers is post-processing and costs no more.

Shapes: N patients.
"""

from __future__ import annotations

import numpy as np

from wardround.metrics.classification import logits, probabilities
from wardround.metrics.noised_auc import ScoreHistogram
from wardround.metrics.score_bins import bin_centres

LARGEST_SHIFT = 5.0  # of a logit: a count of zero events would else give minus infinity
STEPS = 60  # of a bisection


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
    return probabilities(logits(scores_N) + shift)
