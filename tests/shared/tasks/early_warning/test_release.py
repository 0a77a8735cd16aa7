"""What a federation releases about an early warning: the intercept that its noised counts give, and the card's line."""

from __future__ import annotations

import numpy as np
import pytest

from wardround.metrics.noised_auc import ScoreHistogram
from wardround.metrics.score_bins import bins_of
from wardround.tasks.early_warning.intercepts import calibrated_scores
from wardround.tasks.early_warning.release import card_lines, figures

BINS, SCALE = 16, 2.0


def histogram(shift: float, noise: float = 0.0) -> ScoreHistogram:
    """Counts of 4,000 patients whose true logits are `shift` above the model's."""
    random = np.random.default_rng(0)
    logits_N = random.normal(-3, 1.2, 4000)
    events_N = random.random(4000) < calibrated_scores(1 / (1 + np.exp(-logits_N)), shift)
    counts_2B = np.zeros((2, BINS))
    np.add.at(counts_2B, (events_N.astype(int), bins_of(logits_N, BINS, SCALE)), 1)
    return ScoreHistogram(
        counts_2B=np.round(counts_2B + random.normal(0, noise, counts_2B.shape)),
        noise_variance=noise**2,
        logit_scale=SCALE,
    )


@pytest.mark.parametrize("noise", [0.0, 4.0])
@pytest.mark.parametrize("shift", [0.0, 1.3])
def test_the_released_counts_give_the_shift_of_the_risks(shift: float, noise: float) -> None:
    assert figures(histogram(shift, noise))["fitted_calibration"]["intercept"] == pytest.approx(shift, abs=0.3)


def test_counts_below_their_noise_give_no_shift_and_the_card_says_so() -> None:
    found = figures(histogram(0.0, 1000.0))
    assert found == {"fitted_calibration": None} and "not calibrated" in card_lines(found)[0]
    assert card_lines({"fitted_calibration": {"intercept": 1.25}}) == [
        "- the level of the risks is calibrated on noised counts: logits are shifted by +1.25"
    ]
