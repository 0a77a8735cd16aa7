"""The intercept of noised counts: it meets the counts, keeps the order of patients, and is bounded."""

from __future__ import annotations

import numpy as np
import pytest

from wardround.metrics.noised_auc import ScoreHistogram
from wardround.metrics.score_bins import bin_centres
from wardround.tasks.early_warning.intercepts import LARGEST_SHIFT, calibrated_scores, from_histogram

RISKS = np.random.default_rng(0).beta(1, 20, 400)
BINS, SCALE = 16, 2.0


def histogram(counts_2B: np.ndarray, noise_variance: float = 0.0) -> ScoreHistogram:
    return ScoreHistogram(counts_2B=counts_2B, noise_variance=noise_variance, logit_scale=SCALE)


@pytest.mark.parametrize("events", [1, 55, 200, 300])
def test_after_the_shift_the_risks_add_up_to_the_count(events: int) -> None:
    counts_2B = np.zeros((2, BINS))
    counts_2B[0, 3:7] = (400 - events) / 4
    counts_2B[1, 3:7] = events / 4
    shift = from_histogram(histogram(counts_2B))
    assert shift is not None
    shifted_B = calibrated_scores(bin_centres(BINS, SCALE), shift)
    assert counts_2B.sum(0) @ shifted_B == pytest.approx(events, rel=1e-6)


def test_a_shift_keeps_the_order_of_the_risks_and_adds_to_their_logits() -> None:
    shifted_N = calibrated_scores(RISKS, 1.5)
    assert np.array_equal(np.argsort(RISKS), np.argsort(shifted_N))
    assert np.log(shifted_N / (1 - shifted_N)) == pytest.approx(np.log(RISKS / (1 - RISKS)) + 1.5)


@pytest.mark.parametrize("events", [0, 1, 400])
def test_extreme_counts_give_a_bounded_shift_or_none(events: int) -> None:
    counts_2B = np.zeros((2, BINS))
    counts_2B[:, 15] = 400 - events, events
    shift = from_histogram(histogram(counts_2B))
    assert shift is None if events in (0, 400) else shift == pytest.approx(-LARGEST_SHIFT)
    assert from_histogram(histogram(counts_2B, noise_variance=1e6)) is None
