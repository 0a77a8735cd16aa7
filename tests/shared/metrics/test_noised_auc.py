"""Figures from noised histograms: unbiased, within the promised error, with intervals of the stated coverage."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from paths import ROOT

from wardround.metrics.noised_auc import (
    ScoreHistogram,
    auc_estimate,
    noise_variance,
    pair_weights,
    roc_points,
    sensitivity_at,
)
from wardround.metrics.noised_calibration import calibration_estimate
from wardround.metrics.ranking import auc
from wardround.metrics.score_bins import bin_centres, bins_of, probability_at

sys.path.insert(0, str(ROOT / "bench"))
from released_figures import BINS, LOGIT_SCALE, SCORES, measure, released_counts  # noqa: E402

SEEDS = 400
LARGEST_ERROR = {1.0: 0.05, 3.0: 0.02}


def histogram(counts_2B, variance=0.0, scale=LOGIT_SCALE):
    return ScoreHistogram(counts_2B=np.asarray(counts_2B), noise_variance=variance, logit_scale=scale)


def exact_counts(logits_P, positive_P, bins=BINS, scale=LOGIT_SCALE):
    cell_P = bins_of(logits_P, bins, scale) + bins * np.asarray(positive_P, dtype=np.int64)
    return np.bincount(cell_P, minlength=2 * bins).reshape(2, bins)


def covers_as_said(share, seeds):
    """Whether a measured coverage is 95 % within 3.5 standard errors, above or below."""
    return abs(share - 0.95) <= 3.5 * math.sqrt(0.95 * 0.05 / seeds)


@pytest.mark.parametrize("positives", [0.5, 0.2])
@pytest.mark.parametrize("epsilon", [1.0, 3.0])
@pytest.mark.parametrize("scores", SCORES)
def test_six_sites_of_100_give_the_auc_within_the_promised_error_unbiased_and_covered(scores, epsilon, positives):
    found = measure(SCORES[scores], 6, 100, positives, epsilon, SEEDS)
    assert found["without_figure"] == 0
    assert found["error"] <= LARGEST_ERROR[epsilon]
    assert abs(found["bias"]) <= 4 * found["bias_se"] + 0.001  # what is left of the bins
    assert covers_as_said(found["covers"], SEEDS)
    assert covers_as_said(found["covers_population"], SEEDS)
    assert found["covers_sensitivity"] >= 0.95 - 3.5 * math.sqrt(0.95 * 0.05 / SEEDS)


@pytest.mark.parametrize("believed", [1.5, 0.7])
def test_intervals_for_another_noise_than_the_one_added_do_not_cover_as_they_say(believed):
    """The power of the test above: noise of epsilon = 1, taken for that of 1.5 or of 0.7."""
    generator, hits = np.random.default_rng(3), 0
    for _ in range(SEEDS):
        positive_P = (generator.random(600) < 0.2).astype(np.int64)
        logits_P = generator.normal(size=600) + 1.2 * positive_P
        counts_2B = released_counts(logits_P, positive_P, 6, 1.0, generator)
        found = auc_estimate(histogram(counts_2B, 6 * noise_variance(believed)))
        hits += found is not None and found.low_here <= auc(logits_P, positive_P) <= found.high_here
    assert not covers_as_said(hits / SEEDS, SEEDS)


def test_a_ratio_that_ignores_its_noisy_denominator_is_biased_and_the_estimate_is_not():
    """Scores to one side of the bins, where that bias is largest; the same patients under many draws of the noise."""
    generator = np.random.default_rng(4)
    label_P = np.repeat([0, 1], [480, 120])
    logits_P = generator.normal(size=600) + label_P + 2
    truth = auc_estimate(histogram(exact_counts(logits_P, label_P))).value
    variance, naive, corrected = 6 * noise_variance(1.0), [], []
    for _ in range(6000):
        counts_2B = released_counts(logits_P, label_P, 6, 1.0, generator)
        n_B, p_B = counts_2B.astype(float)
        naive.append(p_B @ pair_weights(BINS) @ n_B / (n_B.sum() * p_B.sum()) - truth)
        corrected.append(auc_estimate(histogram(counts_2B, variance)).value - truth)
    standard_error = np.std(naive) / math.sqrt(len(naive))
    assert abs(np.mean(naive)) > 4 * standard_error
    assert abs(np.mean(corrected)) < 3.5 * standard_error and abs(np.mean(corrected)) < abs(np.mean(naive)) / 2


@pytest.mark.parametrize("spread", [0.5, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("shift", [0.0, -2.0])
def test_bins_hardly_move_the_auc_of_scores_that_spread_by_half_a_logit_to_four(spread, shift):
    generator = np.random.default_rng(5)
    label_P = np.repeat([0, 1], 50_000)
    logits_P = shift + spread * (generator.normal(size=100_000) + 1.19 * (label_P - 0.5))
    counts_2B = exact_counts(logits_P, label_P)
    found, exact = auc_estimate(histogram(counts_2B)), auc(logits_P, label_P)
    n_B, p_B = counts_2B.astype(float)
    half_for_ties = np.tril(np.ones((BINS, BINS)), -1) + np.eye(BINS) / 2
    plain = p_B @ half_for_ties @ n_B / (n_B.sum() * p_B.sum())
    assert abs(found.value - exact) < 0.009 and abs(found.value - exact) < abs(plain - exact)


def test_scores_in_one_bin_say_nothing_and_the_tied_pairs_tell():
    found = auc_estimate(histogram(exact_counts(np.zeros(100), np.arange(100) % 2)))
    assert found.value == pytest.approx(0.5) and found.tied_pairs == 1.0
    assert found.low_here < 0.45 and found.high_here > 0.55  # nobody can tell the exact AUC of these patients


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=30), st.integers(8, 64), st.floats(0.01, 100))
def test_every_score_has_a_bin(logits, bins, scale):
    bin_P = bins_of(np.array(logits), bins, scale)
    assert ((bin_P >= 0) & (bin_P < bins)).all()
    assert (bin_P[np.isnan(np.array(logits))] == 0).all()


def test_a_bin_holds_the_probabilities_between_its_edges():
    edges = probability_at(np.arange(BINS + 1) / BINS, LOGIT_SCALE)
    assert edges[0] == 0 and edges[-1] == 1 and (np.diff(edges) > 0).all()
    centres = bin_centres(BINS, LOGIT_SCALE)
    assert bins_of(np.log(centres / (1 - centres)), BINS, LOGIT_SCALE).tolist() == list(range(BINS))
    assert ((centres > edges[:-1]) & (centres < edges[1:])).all()


def test_without_noise_the_interval_is_that_of_the_house():
    from wardround.metrics.intervals import auc_interval

    generator = np.random.default_rng(6)
    label_P = (generator.random(400) < 0.3).astype(np.int64)
    logits_P = generator.normal(size=400) + 1.2 * label_P
    ours, house = (
        auc_estimate(histogram(exact_counts(logits_P, label_P))),
        auc_interval(logits_P, label_P, np.arange(400)),
    )
    assert ours.low == pytest.approx(house.low, abs=0.006) and ours.high == pytest.approx(house.high, abs=0.006)


def test_a_label_that_does_not_stand_out_of_the_noise_has_no_figure():
    counts_2B = exact_counts(np.zeros(50), np.zeros(50, int))
    assert auc_estimate(histogram(counts_2B)) is None and roc_points(histogram(counts_2B)) is None
    counts_2B[1, 3] = 5  # five positives under noise of standard deviation 16 x 1.84
    assert auc_estimate(histogram(counts_2B)) is not None
    noisy = histogram(counts_2B, noise_variance(1.0))
    assert auc_estimate(noisy) is None and sensitivity_at(noisy) is None and calibration_estimate(noisy) is None


def test_the_curve_rises_whatever_the_noise():
    generator = np.random.default_rng(7)
    for _ in range(50):
        counts_2B = (
            3 + np.round(generator.normal(scale=4, size=(2, BINS))).astype(int) + np.eye(2, BINS, dtype=int) * 40
        )
        false_B1, true_B1 = roc_points(histogram(counts_2B, 1.0))
        for rate_B1 in (false_B1, true_B1):
            assert rate_B1[0] == 1 and rate_B1[-1] == 0 and (np.diff(rate_B1) <= 1e-12).all()


def test_a_model_that_is_calibrated_looks_so_and_one_that_boasts_does_not():
    generator = np.random.default_rng(8)
    covered, honest_ece, boasting, under = 0, [], 0, 0
    for _ in range(200):
        logits_P = 1.5 * generator.normal(size=600) - 0.5
        positive_P = (generator.random(600) < 1 / (1 + np.exp(-logits_P))).astype(np.int64)
        variance = 6 * noise_variance(1.0)
        honest = calibration_estimate(histogram(released_counts(logits_P, positive_P, 6, 1.0, generator), variance))
        covered += honest.low <= 0 <= honest.high
        honest_ece.append(honest.ece - honest.ece_if_perfect)
        boast = calibration_estimate(
            histogram(released_counts(3 * logits_P + 1, positive_P, 6, 1.0, generator), variance)
        )
        boasting += boast.ece > 3 * boast.ece_if_perfect
        under += honest.ece > 3 * honest.ece_if_perfect
    assert covers_as_said(covered / 200, 200)
    assert abs(np.mean(honest_ece)) < 0.01 and boasting > 190 and under < 10


def test_the_share_of_a_reliability_point_lies_in_its_interval_as_often_as_it_says():
    generator, hits, points = np.random.default_rng(9), 0, 0
    for _ in range(200):
        logits_P = 1.5 * generator.normal(size=600)
        positive_P = (generator.random(600) < 1 / (1 + np.exp(-logits_P))).astype(np.int64)
        counts_2B = released_counts(logits_P, positive_P, 6, 1.0, generator)
        for point in calibration_estimate(histogram(counts_2B, 6 * noise_variance(1.0))).points:
            hits += point.low <= point.predicted <= point.high
            points += 1
    assert points > 700 and 0.92 < hits / points < 0.99
