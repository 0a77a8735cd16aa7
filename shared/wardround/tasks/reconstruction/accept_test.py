"""The accept test of a reconstruction: whether the trained model is no worse than its public start.

Each site counts its held-out patients in bins by their gain (dB of peak signal-to-noise ratio, trained minus start).
Only the noised histogram leaves the site; it is charged to `evaluation.epsilon` like any other release. The decision is
a function of the sum of these histograms over the sites, so it has no further privacy cost.

Shapes: B bins.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any, TypeVar

import numpy as np

from wardround.metrics.noised_auc import LEAST_SIGNAL, ScoreHistogram

MARGIN_DB = 0.05  # a smaller decrease is not visible, so it does not count as worse
CONFIDENCE = 0.9  # one-sided

Weights = TypeVar("Weights")


@dataclass(frozen=True, kw_only=True)
class AcceptTest:
    """The result: the mean gain in dB, its lower bound, which determines the decision, and the reason in words.

    The two figures are None if the number of patients is too small relative to the noise.
    """

    accepted: bool
    gain_db: float | None
    low_db: float | None
    patients_noised: int
    reason: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def accept_test(histogram: ScoreHistogram) -> AcceptTest:
    """Accept the trained model if the one-sided 90 % lower bound of the mean gain is at least -0.05 dB.

    This is a test of non-inferiority, on the ratio of two noisy sums. If the patients cannot be distinguished from the
    noise, the model is not accepted and the public start is kept.

    Each patient counts with the gain at the middle of the bin, so gains beyond the outermost bins count as theirs.
    """
    counts_B, noise = histogram.counts_2B.sum(0).astype(np.float64), 2 * histogram.noise_variance
    total = float(counts_B.sum())
    if total < max(1.0, LEAST_SIGNAL * math.sqrt(histogram.bins * noise)):
        reason = "the held-out patients do not stand out of the noise: nothing can be said, so the public start stays"
        return AcceptTest(accepted=False, gain_db=None, low_db=None, patients_noised=int(total), reason=reason)
    place_B = (np.arange(histogram.bins) + 0.5) / histogram.bins
    gain_B = histogram.logit_scale * (np.log(place_B) - np.log1p(-place_B))
    gain = float(counts_B @ gain_B / total)
    spread_B = (gain_B - gain) ** 2
    sampling = max(float(counts_B @ spread_B), 0.0)  # variance from the sampling of patients; the noise is added below
    deviation = math.sqrt(sampling + noise * float(spread_B.sum())) / total
    low = gain - NormalDist().inv_cdf(CONFIDENCE) * deviation
    accepted = low >= -MARGIN_DB
    measured = (
        f"the gain over the public start is {gain:+.3f} dB, at least {low:+.3f} dB with {CONFIDENCE:.0%} confidence"
    )
    verdict = "no worse than its start, so it is released" if accepted else "it may be worse, so the public start stays"
    return AcceptTest(
        accepted=accepted, gain_db=gain, low_db=low, patients_noised=int(total), reason=f"{measured}: {verdict}"
    )


def released_model(figures: Mapping[str, Any] | None, trained: Weights, start: Weights) -> tuple[Weights, str]:
    """Return the weights that a run releases and their name, "trained" or "start".

    The choice depends on `figures`, the `federated_test` of the run's result. Without an accept test (another task, or
    no budget for one) the trained weights are released.
    """
    test = (figures or {}).get("accept_test")
    return (trained, "trained") if test is None or test["accepted"] else (start, "start")
