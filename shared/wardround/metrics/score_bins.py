"""The public bins of released scores. They depend only on numbers in the study, never on patients' data.

A score is a logit x. The bins have equal width in u = 1 / (1 + exp(-x / logit_scale)): narrow where models are
unsure, wide in the tails, and the outermost ones extend to infinity. With 16 bins and a scale of 2, a bin in the middle
is half a logit wide and the outermost edges are at +-5.4, which suits scores with a standard deviation of 0.5 to 4
logits (`docs/studies.md`). Shapes: P patients, B bins.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from wardround.metrics.classification import probabilities


def bins_of(logits_P: ArrayLike, bins: int, logit_scale: float) -> np.ndarray:
    """Return the bin of each score, int64 (P,) in 0..B-1. NaN scores go to bin 0, an arbitrary choice."""
    logits_P = np.asarray(logits_P, dtype=np.float64)
    known_P = ~np.isnan(logits_P)
    with np.errstate(over="ignore"):  # a logit that overflows to infinity belongs to the last bin too
        place_P = probabilities(np.where(known_P, logits_P, -np.inf) / logit_scale) * bins
    return np.minimum(place_P.astype(np.int64), bins - 1)


def probability_at(place: ArrayLike, logit_scale: float) -> np.ndarray:
    """Return the probability of the positive label for a score at `place` (0..1 over the range of all bins)."""
    logits = place_to_logit(place, logit_scale)
    return probabilities(np.atleast_1d(logits)).reshape(logits.shape)


def place_to_logit(place: ArrayLike, logit_scale: float) -> np.ndarray:
    """Return the logit of a score at `place` (0..1 over the range of all bins); infinite at 0 and 1."""
    place = np.asarray(place, dtype=np.float64)
    with np.errstate(divide="ignore"):
        return np.asarray(logit_scale * (np.log(place) - np.log1p(-place)))


def bin_centres(bins: int, logit_scale: float) -> np.ndarray:
    """Return the probability in the middle of each bin, (B,), which is used as the prediction for its patients."""
    return probability_at((np.arange(bins) + 0.5) / bins, logit_scale)
