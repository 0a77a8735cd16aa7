"""Calibrated probabilities and label sets with stated coverage, fitted to noised histograms of scores.

A calibration is fitted to the counts of held-out patients that sites released already, so it costs no more privacy. A
patient's score is a logit x, and the calibrated probability is 1 / (1 + exp(-x / temperature)) (Guo et al. 2017). A
label set contains every label that the score does not rule out (split conformal prediction by label: Vovk et al. 2005,
Sadinle et al. 2019): of patients like those of the histogram, it contains the right label with the stated coverage.

Shapes: B bins, N scores. This module needs no torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from wardround.metrics.classification import probabilities
from wardround.metrics.intervals import tail_of
from wardround.metrics.noised_auc import ScoreHistogram, share_below
from wardround.metrics.score_bins import bin_centres, place_to_logit

COVERAGE = 0.9
SCALE_DEVIATION, OFFSET_DEVIATION = 0.4, 0.5  # of the prior: factor exp(+-0.4) on logits, +-0.5 logits
LEAST_PATIENTS = 0.5  # expected in a bin: keeps the variance of an empty bin above 0
# Share of the deviation of a label's total noise by which the sets are widened. In the experiments of
# bench/calibration.py the coverage is then within 2 points of the stated one from epsilon 1 to infinity.
NOISE_MARGIN = 0.1
_SCALES = np.linspace(-1.5, 1.5, 121)  # log of 1 / temperature
_OFFSETS = np.linspace(-2.0, 2.0, 81)
MOST_LOGIT = 1e4


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """How a logit becomes a probability with an interval, and a set of labels.

    `scale_variance`, `offset_variance` and `covariance` describe the uncertainty of log(1 / temperature) and of an
    offset of the logit, which is 0 in the fit. A label set of `coverage` contains the second label for logits of at
    least `positive_from`, and the first one for logits of at most `negative_to`. `patients` is the noised number of
    patients behind the fit.
    """

    temperature: float
    scale_variance: float
    offset_variance: float
    covariance: float
    coverage: float
    positive_from: float
    negative_to: float
    patients: int

    def __post_init__(self) -> None:
        values = list(asdict(self).values())
        if not all(isinstance(value, (int, float)) and math.isfinite(value) for value in values):
            raise ValueError("a calibration contains a value that is not a finite number")
        if not 1e-3 <= self.temperature <= 1e3 or not 0 < self.coverage < 1:
            raise ValueError("temperature or coverage is out of range")
        if min(self.scale_variance, self.offset_variance) < 0 or max(map(abs, values)) > 1e9:
            raise ValueError("a variance is negative, or a value is out of range")

    def to_json(self) -> dict[str, Any]:
        """Return plain numbers."""
        return asdict(self)

    def probability(self, logits_N: ArrayLike) -> np.ndarray:
        """Return the calibrated probability of the second label, (N,)."""
        return probabilities(_bounded(logits_N) / self.temperature)

    def interval(self, logits_N: ArrayLike, confidence: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
        """Return the ends of the probability's interval, (N,) each.

        The interval covers the uncertainty of the calibration (delta method), not that of a single patient's outcome.
        """
        middle_N = _bounded(logits_N) / self.temperature
        variance_N = middle_N**2 * self.scale_variance + 2 * middle_N * self.covariance + self.offset_variance
        reach_N = NormalDist().inv_cdf(1 - tail_of(confidence)) * np.sqrt(np.maximum(variance_N, 0.0))
        return probabilities(middle_N - reach_N), probabilities(middle_N + reach_N)

    def label_sets(self, logits_N: ArrayLike) -> np.ndarray:
        """Return whether the set of each score contains the first and the second label, bool (N, 2).

        A score between the two limits would rule out both labels; its set contains both instead, which only raises the
        coverage.
        """
        logits_N = np.asarray(logits_N, dtype=np.float64)
        sets_N2 = np.stack([logits_N <= self.negative_to, logits_N >= self.positive_from], axis=1)
        return np.where(sets_N2.any(axis=1, keepdims=True), sets_N2, True)


def calibration_from(plain: Mapping[str, Any]) -> Calibration:
    """Rebuild a calibration from `Calibration.to_json`. Raises `ValueError` for any other content."""
    if set(plain) != set(Calibration.__dataclass_fields__):
        raise ValueError("not the fields of a calibration")
    try:
        return Calibration(**plain)
    except TypeError:
        raise ValueError("a calibration contains a value that is not a number") from None


def fit_calibration(histogram: ScoreHistogram, coverage: float = COVERAGE) -> Calibration | None:
    """Fit temperature and label sets; None if the counts of a label do not exceed the noise.

    The temperature maximises a normal quasi-likelihood of the gaps between expected and counted positives by bin, whose
    variance contains the noise, with a prior around 1. With much noise the temperature therefore stays near 1 instead
    of following the noise.
    """
    if not histogram.both_labels:
        return None
    likelihood_SO = _log_likelihood(histogram)
    centre = int(np.flatnonzero(_OFFSETS == 0.0)[0])
    best = int(likelihood_SO[:, centre].argmax())
    weights_SO = np.exp(likelihood_SO - likelihood_SO.max())
    weights_SO /= weights_SO.sum()
    scale_S, offset_O = _SCALES - _SCALES[best], _OFFSETS
    positive_from, negative_to = _limits(histogram, 1 - coverage)
    return Calibration(
        temperature=float(math.exp(-_SCALES[best])),
        scale_variance=float(weights_SO.sum(axis=1) @ scale_S**2),
        offset_variance=float(weights_SO.sum(axis=0) @ offset_O**2),
        covariance=float(scale_S @ weights_SO @ offset_O),
        coverage=coverage,
        positive_from=positive_from,
        negative_to=negative_to,
        patients=int(histogram.counts_2B.sum()),
    )


def _log_likelihood(histogram: ScoreHistogram) -> np.ndarray:
    """Return the penalised log quasi-likelihood of each scale and offset, (S, O)."""
    n_B, p_B, v = histogram.negatives_B(), histogram.positives_B(), histogram.noise_variance
    centres_B = bin_centres(histogram.bins, histogram.logit_scale)
    logits_B = np.log(centres_B) - np.log1p(-centres_B)
    scaled_SOB = np.exp(_SCALES)[:, None, None] * logits_B + _OFFSETS[None, :, None]
    shown_SOB = probabilities(scaled_SOB.ravel()).reshape(scaled_SOB.shape)
    gap_SOB = shown_SOB * n_B - (1 - shown_SOB) * p_B
    variance_SOB = v * (shown_SOB**2 + (1 - shown_SOB) ** 2)
    variance_SOB += np.maximum(n_B + p_B, LEAST_PATIENTS) * shown_SOB * (1 - shown_SOB) + 1e-9
    likelihood_SO = -0.5 * (gap_SOB**2 / variance_SOB + np.log(variance_SOB)).sum(axis=2)
    prior_SO = (_SCALES[:, None] / SCALE_DEVIATION) ** 2 + (_OFFSETS[None, :] / OFFSET_DEVIATION) ** 2
    return likelihood_SO - 0.5 * prior_SO


def _limits(histogram: ScoreHistogram, error: float) -> tuple[float, float]:
    """Return the logits from which the second label, and up to which the first label, belongs to a set."""
    edges = np.linspace(0.0, 1.0, histogram.bins + 1)
    spread = math.sqrt(histogram.bins * histogram.noise_variance)

    def place(counts_B: np.ndarray, share: float) -> float:
        rising = share_below(counts_B) + 1e-12 * np.arange(len(edges))
        return float(np.interp(share, rising, edges))

    def allowed(patients: float) -> float:
        """The share of errors for this many patients: the usual correction for their number, less the noise."""
        return max(0.0, (error * (patients + 1) - 1 - NOISE_MARGIN * spread) / patients)

    n_B, p_B = histogram.negatives_B(), histogram.positives_B()
    places = place(p_B, allowed(p_B.sum())), place(n_B, 1 - allowed(n_B.sum()))
    lowest, highest = (
        float(np.clip(place_to_logit(one, histogram.logit_scale), -MOST_LOGIT, MOST_LOGIT)) for one in places
    )
    return lowest, highest


def _bounded(logits_N: ArrayLike) -> np.ndarray:
    return np.clip(np.asarray(logits_N, dtype=np.float64), -MOST_LOGIT, MOST_LOGIT)
