"""Release of held-out patients' scores: a histogram for each label, with two-sided geometric noise.

Guarantee: each patient is counted once, in one cell, so adding or removing one moves the histogram by 1 in one cell
(sensitivity 1 in every norm). Every cell, empty or not, gets independent noise Z, P(Z = z) = (1 - a) / (1 + a) a^|z|
with a = exp(-epsilon): the ratio of the probabilities of any output at neighbours is at most e^epsilon, so the release
is (epsilon, 0)-DP per patient (Ghosh, Roughgarden, Sundararajan 2009). The noise is an integer drawn without rounding,
from bits and whole numbers only (Canonne, Kamath, Steinke 2020), so floating-point attacks do not apply (Mironov 2012).
`epsilon = inf` adds no noise and gives no privacy. `rounds/evaluation.py`, not this module, decides whether a site
allows a release.
"""

from __future__ import annotations

import math

import numpy as np

from wardround.errors import WardroundError
from wardround.metrics.score_bins import bins_of
from wardround_client.privacy.secure_random import SecretRandom


def score_histogram(logits_P: np.ndarray, positive_P: np.ndarray, bins: int, logit_scale: float) -> np.ndarray:
    """Count patients by label and score bin, int64 (2, B): first those without the positive label, then those with it.

    The counts are exact and stay at the site. The cell of a patient depends on that patient alone: a NaN score counts
    in bin 0.
    """
    cell_P = bins_of(logits_P, bins, logit_scale) + bins * np.asarray(positive_P, dtype=np.int64)
    return np.bincount(cell_P, minlength=2 * bins).astype(np.int64).reshape(2, bins)


def noised(counts_2B: np.ndarray, epsilon: float, randomness: SecretRandom) -> np.ndarray:
    """Return the counts with independent two-sided geometric noise in every cell, int64 (2, B).

    Noised counts may be negative.

    Raises:
        WardroundError: `epsilon` is not above 0.
    """
    if math.isinf(epsilon) and epsilon > 0:
        return counts_2B.copy()
    noise = [two_sided_geometric(epsilon, randomness) for _ in range(counts_2B.size)]
    return counts_2B + np.array(noise, dtype=np.int64).reshape(counts_2B.shape)


def two_sided_geometric(epsilon: float, randomness: SecretRandom) -> int:
    """Draw an integer Z with P(Z = z) proportional to exp(-epsilon |z|), exactly.

    Z is the difference of two geometric numbers.

    Raises:
        WardroundError: `epsilon` is not a finite number above 0.
    """
    if not (math.isfinite(epsilon) and epsilon > 0):
        raise WardroundError(f"noise needs a finite epsilon above 0, not {epsilon:g}")
    return _geometric(epsilon, randomness) - _geometric(epsilon, randomness)


def _geometric(epsilon: float, randomness: SecretRandom) -> int:
    """Draw the number of successes before the first failure, each with probability exp(-epsilon)."""
    successes = 0
    while _happens_exp(epsilon, randomness):
        successes += 1
    return successes


def _happens_exp(epsilon: float, randomness: SecretRandom) -> bool:
    """Return True with probability exp(-epsilon), exactly: algorithm 1 of Canonne, Kamath, Steinke 2020.

    Draws once with probability exp(-1) for each whole unit of epsilon, then once for the fractional rest, which is
    numerator / 2^k as every float is.
    """
    whole = math.floor(epsilon)
    numerator, denominator = (epsilon - whole).as_integer_ratio()
    units = all(_happens_exp_fraction(1, 1, randomness) for _ in range(whole))
    return units and _happens_exp_fraction(numerator, denominator, randomness)


def _happens_exp_fraction(numerator: int, denominator: int, randomness: SecretRandom) -> bool:
    """Return True with probability exp(-g), g = numerator / denominator in [0, 1].

    Flips coins with probabilities g/1, g/2, ... until one fails.
    """
    coins = 1
    while _below(denominator * coins, randomness) < numerator:
        coins += 1
    return coins % 2 == 1


def _below(bound: int, randomness: SecretRandom) -> int:
    """Draw a uniform integer in 0..bound-1, exactly.

    Draws as many bits as the bound needs, and draws again while the result reaches the bound.
    """
    bits = (bound - 1).bit_length()
    words = -(-bits // 64)
    while bits:
        drawn = int.from_bytes(randomness.words(words).tobytes(), "little") >> (64 * words - bits)
        if drawn < bound:
            return drawn
    return 0
