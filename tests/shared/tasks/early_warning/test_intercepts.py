"""A site's intercept: it meets the count, and the count's noise has the distribution that its epsilon promises."""

from __future__ import annotations

import math

import numpy as np
import pytest

from wardround.tasks.early_warning.intercepts import at_site, calibrated_scores, count_noise, noised_count

RISKS = np.random.default_rng(0).beta(1, 20, 400)


@pytest.mark.parametrize("events", [1, 55, 200, 300])
def test_after_the_shift_the_risks_add_up_to_the_count(events: int) -> None:
    shifted_N = calibrated_scores(RISKS, at_site(RISKS, events))
    assert shifted_N.sum() == pytest.approx(events, rel=1e-6)
    assert np.array_equal(np.argsort(RISKS), np.argsort(shifted_N))


@pytest.mark.parametrize("count", [-30.0, 0.0, 400.0, 900.0])
def test_a_count_beyond_what_is_possible_gives_a_bounded_shift(count: float) -> None:
    assert abs(at_site(RISKS, count)) <= 5 and at_site(RISKS[:0], count) == 0


def test_noise_has_the_promised_distribution_and_a_smaller_epsilon_more_of_it() -> None:
    random = np.random.default_rng(1)
    noise = np.array([noised_count(0, 0.5, tuple(random.random(2))) for _ in range(40_000)])
    share = math.exp(-0.5)
    right = {k: (1 - share) / (1 + share) * share ** abs(k) for k in range(-4, 5)}
    for k, chance in right.items():
        assert np.mean(noise == k) == pytest.approx(chance, abs=0.008)
    assert noise.std() == pytest.approx(count_noise(0.5), rel=0.03)
    assert noised_count(7, math.inf, (0.3, 0.9)) == 7
    wrong = np.array([noised_count(0, 1.0, tuple(random.random(2))) for _ in range(40_000)])
    assert abs(np.mean(wrong == 0) - right[0]) > 0.05  # the test tells twice the epsilon from the right one
