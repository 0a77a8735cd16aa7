"""The public bins of released scores: which numbers they depend on is in the study, and none is a patient's.

A score is a logit x. The bins are of equal width in u = 1 / (1 + exp(-x / logit_scale)): narrow where models are
unsure, wide in the tails, and the outermost reach to infinity. With 16 bins and a scale of 2 a bin in the middle is
half a logit wide and the last edges lie at +-5.4: right for scores whose standard deviation is 0.5 to 4 logits
(`docs/studies.md`). Shapes: P patients, B bins.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from wardround.metrics.classification import probabilities


def bins_of(logits_P: ArrayLike, bins: int, logit_scale: float) -> np.ndarray:
    """The bin of each score, int64 (P,) in 0..B-1. A score that is not a number goes to bin 0, for no reason."""
    logits_P = np.asarray(logits_P, dtype=np.float64)
    known_P = ~np.isnan(logits_P)
    with np.errstate(over="ignore"):  # beyond the largest number is in the last bin as well
        place_P = probabilities(np.where(known_P, logits_P, -np.inf) / logit_scale) * bins
    return np.minimum(place_P.astype(np.int64), bins - 1)


def probability_at(place: ArrayLike, logit_scale: float) -> np.ndarray:
    """The probability of the positive label that a score at `place` (0..1, in units of all bins) stands for."""
    place = np.asarray(place, dtype=np.float64)
    with np.errstate(divide="ignore"):
        logits = logit_scale * (np.log(place) - np.log1p(-place))
    return probabilities(np.atleast_1d(logits)).reshape(place.shape)


def bin_centres(bins: int, logit_scale: float) -> np.ndarray:
    """The probability in the middle of each bin, (B,): what its patients count as having been told."""
    return probability_at((np.arange(bins) + 0.5) / bins, logit_scale)
