"""Calibrations fitted to noised histograms: what they give is right for other patients, and noise does not mislead."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from wardround.metrics.calibration import Calibration, calibration_from, fit_calibration
from wardround.metrics.classification import expected_calibration_error, probabilities
from wardround.metrics.noised_auc import ScoreHistogram, noise_variance
from wardround.metrics.score_bins import bins_of

BINS, SCALE = 16, 2.0


def patients(count, temperature, random, spread=2.0):
    """Logits that are `temperature` times too large, and the labels of these patients."""
    true_N = random.normal(0, spread, count)
    labels_N = (random.random(count) < probabilities(true_N)).astype(int)
    return temperature * true_N, labels_N


def histogram_of(logits_N, labels_N, epsilon, random, sites=1):
    counts_2B = np.zeros((2, BINS), np.int64)
    np.add.at(counts_2B, (labels_N, bins_of(logits_N, BINS, SCALE)), 1)
    if math.isfinite(epsilon):
        share = 1 - math.exp(-epsilon)
        for _ in range(sites):
            counts_2B += random.geometric(share, (2, BINS)) - random.geometric(share, (2, BINS))
    return ScoreHistogram(counts_2B=counts_2B, noise_variance=sites * noise_variance(epsilon), logit_scale=SCALE)


@pytest.mark.parametrize("temperature", [0.6, 1.0, 2.0])
def test_the_temperature_of_exact_counts_is_found(temperature):
    random = np.random.default_rng(1)
    fitted = fit_calibration(histogram_of(*patients(20_000, temperature, random), math.inf, random))
    assert fitted.temperature == pytest.approx(temperature, rel=0.06)


@pytest.mark.parametrize("epsilon", [1.0, 8.0, math.inf])
def test_probabilities_of_other_patients_are_calibrated_although_the_counts_are_noised(epsilon):
    random, before, after = np.random.default_rng(2), [], []
    other_logits_N, other_labels_N = patients(4_000, 2.0, random)
    for _ in range(20):
        fitted = fit_calibration(histogram_of(*patients(300, 2.0, random), epsilon, random, sites=4))
        before.append(expected_calibration_error(probabilities(other_logits_N), other_labels_N))
        after.append(expected_calibration_error(fitted.probability(other_logits_N), other_labels_N))
    assert np.mean(before) > 0.1
    assert np.mean(after) < 0.05


def test_noise_alone_keeps_the_temperature_near_one():
    random = np.random.default_rng(3)
    found = []
    for _ in range(60):
        fitted = fit_calibration(histogram_of(*patients(60, 1.0, random), 0.5, random, sites=3))
        found += [] if fitted is None else [math.log(fitted.temperature)]
    assert len(found) > 5
    assert np.std(found) < 0.5


@pytest.mark.parametrize("epsilon", [1.0, 2.0, math.inf])
def test_label_sets_contain_the_right_label_as_often_as_stated(epsilon):
    random, inside = np.random.default_rng(4), []
    for _ in range(60):
        fitted = fit_calibration(histogram_of(*patients(200, 1.5, random), epsilon, random, sites=4), coverage=0.9)
        logits_N, labels_N = patients(500, 1.5, random)
        inside.append(fitted.label_sets(logits_N)[np.arange(500), labels_N].mean())
    assert np.mean(inside) == pytest.approx(0.9, abs=0.02)


def test_a_set_is_never_empty():
    fitted = fit_calibration(histogram_of(*patients(500, 1.0, np.random.default_rng(5), spread=8.0), math.inf, None))
    apart = replace(fitted, positive_from=1.0, negative_to=-1.0)
    assert apart.label_sets([-2.0, 0.0, 2.0]).tolist() == [[True, False], [True, True], [False, True]]


def test_the_interval_contains_the_probability_and_narrows_with_more_patients():
    random = np.random.default_rng(6)
    widths = []
    for count in (100, 10_000):
        fitted = fit_calibration(histogram_of(*patients(count, 1.3, random), 8.0, random))
        low_N, high_N = fitted.interval([-3.0, 0.5, 2.0])
        assert (low_N <= fitted.probability([-3.0, 0.5, 2.0])).all()
        assert (fitted.probability([-3.0, 0.5, 2.0]) <= high_N).all()
        widths.append((high_N - low_N).mean())
    assert widths[1] < widths[0] / 3


def test_the_interval_covers_the_true_probability():
    random, inside = np.random.default_rng(7), []
    for _ in range(200):
        fitted = fit_calibration(histogram_of(*patients(150, 1.5, random), 2.0, random, sites=3))
        if fitted is None:
            continue
        low_N, high_N = fitted.interval([-3.0, -1.5, 1.5, 3.0])
        true_N = probabilities(np.array([-2.0, -1.0, 1.0, 2.0]))
        inside.append(((low_N <= true_N) & (true_N <= high_N)).mean())
    assert np.mean(inside) > 0.93


def test_nothing_is_fitted_to_counts_that_the_noise_hides():
    counts_2B = np.array([[1] * BINS, [0] * BINS], np.int64)
    assert fit_calibration(ScoreHistogram(counts_2B=counts_2B, noise_variance=2.0, logit_scale=SCALE)) is None


def test_a_calibration_survives_json_and_anything_else_is_refused():
    fitted = fit_calibration(histogram_of(*patients(500, 1.4, np.random.default_rng(8)), math.inf, None))
    plain = json.loads(json.dumps(fitted.to_json()))
    assert calibration_from(plain) == fitted
    for wrong in (
        {**plain, "temperature": 0},
        {**plain, "temperature": "1"},
        {**plain, "temperature": math.nan},
        {**plain, "coverage": 1.0},
        {**plain, "scale_variance": -1.0},
        {**plain, "positive_from": math.inf},
        {**plain, "more": 1},
        {name: value for name, value in plain.items() if name != "patients"},
    ):
        with pytest.raises(ValueError):
            calibration_from(wrong)


def test_logits_of_any_size_give_probabilities():
    fitted = Calibration(
        temperature=1.2, scale_variance=0.1, offset_variance=0.1, covariance=0.0, coverage=0.9,
        positive_from=0.0, negative_to=1.0, patients=100,
    )  # fmt: skip
    low_N, high_N = fitted.interval([-1e300, 1e300])
    assert np.isfinite([*low_N, *high_N]).all()
    assert fitted.probability([-1e300, 1e300]).tolist() == [0.0, 1.0]


def test_more_noise_in_the_same_counts_widens_the_sets():
    exact = histogram_of(*patients(400, 1.5, np.random.default_rng(9)), math.inf, None)
    narrow, wide = fit_calibration(exact), fit_calibration(replace(exact, noise_variance=9.0))
    assert wide.positive_from < narrow.positive_from
    assert wide.negative_to > narrow.negative_to
