"""Theorems about the figures: the meaning of AUC, the width of intervals, and what calibration measures."""

from __future__ import annotations

import json
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wardround.metrics import classification

rows = st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 1), st.integers(0, 5)), min_size=1, max_size=40)


def counted_auc(scores: np.ndarray, labels: np.ndarray) -> float | None:
    """The definition: every pair of a positive and a negative, one by one."""
    pairs = [np.sign(a - b) for a in scores[labels == 1] for b in scores[labels == 0]]
    return float(np.mean(pairs) / 2 + 0.5) if pairs else None


def columns(drawn: list[tuple[int, int, int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    scores, labels, patients = (np.array(column) for column in zip(*drawn, strict=True))
    return scores / 3.0, labels, patients


@given(rows)
def test_auc_is_the_share_of_pairs_in_the_right_order_ties_half(drawn):
    scores, labels, _ = columns(drawn)
    expected = counted_auc(scores, labels)
    assert classification.auc(scores, labels) == (None if expected is None else pytest.approx(expected, abs=1e-12))


@given(rows)
def test_auc_ignores_the_scale_and_turns_around_with_the_sign(drawn):
    scores, labels, _ = columns(drawn)
    area = classification.auc(scores, labels)
    if area is not None:
        assert classification.auc(np.exp(3 * scores) + 7, labels) == area
        assert classification.auc(-scores, labels) == pytest.approx(1 - area, abs=1e-12)


@given(rows)
def test_the_roc_curve_rises_from_corner_to_corner_and_its_area_is_the_auc(drawn):
    scores, labels, _ = columns(drawn)
    curve = classification.roc_curve(scores, labels)
    if curve is None:
        assert len(set(labels)) == 1
        return
    x, y = curve.false_positive_rate, curve.true_positive_rate
    assert (x[0], y[0], x[-1], y[-1]) == (0, 0, 1, 1)
    assert (np.diff(x) >= 0).all() and (np.diff(y) >= 0).all() and (np.diff(curve.threshold) < 0).all()
    assert np.trapezoid(y, x) == pytest.approx(classification.auc(scores, labels), abs=1e-12)
    for at, hit, alarm in zip(curve.threshold, y, x, strict=True):
        called = scores >= at
        assert (hit, alarm) == (pytest.approx(called[labels == 1].mean()), pytest.approx(called[labels == 0].mean()))


def test_macro_auc_is_the_mean_of_one_against_the_rest_and_leaves_out_absent_labels():
    scores = np.random.default_rng(1).random((60, 4))
    labels = np.arange(60) % 3  # nobody has label 3
    expected = np.mean([counted_auc(scores[:, k], (labels == k).astype(int)) for k in range(3)])
    assert classification.macro_auc(scores, labels) == pytest.approx(expected)
    assert classification.macro_auc(scores[:5], np.zeros(5, dtype=int)) is None


# What an interval promises: the true value lies inside in 95 of 100 repetitions.

TRUE_AUC = 0.85
REPETITIONS = 600


def imagined_study(
    generator: np.random.Generator, patients: int, images: int, both_labels: bool = False
) -> tuple[np.ndarray, ...]:
    """Patients of one label each, or of both, whose images share two thirds of their scatter.

    The pairs of images of two patients have AUC `TRUE_AUC`.
    """
    patient_N = np.repeat(np.arange(patients), generator.integers(1, 2 * images, size=patients))
    label_N = (generator.random(patients) < 0.5)[patient_N]
    if both_labels:
        label_N = generator.random(len(patient_N)) < 0.5
    shared_N, own_N = generator.normal(size=patients)[patient_N], generator.normal(size=len(patient_N))
    shift = NormalDist().inv_cdf(TRUE_AUC) * np.sqrt(2)
    return np.sqrt(2 / 3) * shared_N + np.sqrt(1 / 3) * own_N + shift * label_N, label_N.astype(int), patient_N


def logit(area: float) -> float:
    return float(np.log(area / (1 - area)))


def coverage(intervals: list[classification.Estimate], stretch: float = 1.0) -> float:
    """Share of intervals that hold `TRUE_AUC` when each is stretched about its value on the logit scale."""
    hits = 0
    for found in intervals:
        if not 0 < found.value < 1:
            hits += found.low <= TRUE_AUC <= found.high
            continue
        middle, true = logit(found.value), logit(TRUE_AUC)
        low, high = (middle + stretch * (logit(end) - middle) for end in (found.low, found.high))
        hits += low <= true <= high
    return hits / len(intervals)


def honest(share: float) -> bool:
    """95 % within three standard errors of `REPETITIONS` repetitions, and another one for what a formula may miss."""
    return abs(share - 0.95) <= 4 * np.sqrt(0.95 * 0.05 / REPETITIONS)


def imagined_studies(patients: int, both_labels: bool = False) -> list[tuple[np.ndarray, ...]]:
    generator = np.random.default_rng(patients)
    return [imagined_study(generator, patients, images=4, both_labels=both_labels) for _ in range(REPETITIONS)]


@pytest.fixture(scope="module", params=[25, 80], ids=lambda patients: f"{patients} patients")
def studies(request):
    return imagined_studies(request.param)


def test_the_auc_interval_holds_the_truth_as_often_as_it_says_and_half_or_double_the_width_does_not(studies):
    intervals = [classification.auc_interval(*study) for study in studies]
    assert honest(coverage(intervals))
    assert not honest(coverage(intervals, stretch=0.5))
    assert not honest(coverage(intervals, stretch=2.0))


def test_the_interval_is_honest_too_where_every_patient_has_images_of_both_labels():
    intervals = [classification.auc_interval(*study) for study in imagined_studies(100, both_labels=True)]
    assert honest(coverage(intervals))
    scatter = np.std([found.value for found in intervals])
    assert np.mean([found.high - found.low for found in intervals]) == pytest.approx(2 * 1.96 * scatter, rel=0.1)


def test_taking_every_image_for_a_patient_gives_an_interval_that_is_too_narrow(studies):
    careless = [classification.auc_interval(scores, labels, np.arange(len(scores))) for scores, labels, _ in studies]
    careful = [classification.auc_interval(*study) for study in studies]
    assert not honest(coverage(careless))
    assert np.mean([a.high - a.low for a in careless]) < 0.8 * np.mean([a.high - a.low for a in careful])


@settings(deadline=None)
@given(rows, st.sampled_from([0.5, 0.8, 0.95, 0.99]))
def test_an_interval_holds_its_value_stays_within_0_and_1_and_widens_with_confidence(drawn, confidence):
    study = columns(drawn)
    found, wider = classification.auc_interval(*study, confidence), classification.auc_interval(*study, 0.995)
    if found is not None:
        assert 0 <= wider.low <= found.low <= found.value <= found.high <= wider.high <= 1
        assert found.patients == len(set(study[2]))


def test_copies_of_the_same_images_neither_move_nor_narrow_the_interval():
    scores, labels, patients = imagined_study(np.random.default_rng(3), patients=30, images=3)
    once = classification.auc_interval(scores, labels, patients)
    thrice = classification.auc_interval(np.tile(scores, 3), np.tile(labels, 3), np.tile(patients, 3))
    assert (thrice.low, thrice.high) == (pytest.approx(once.low, abs=1e-9), pytest.approx(once.high, abs=1e-9))


def test_a_perfect_score_of_few_patients_is_not_called_certain():
    labels = np.repeat([0, 1], 6)
    few = classification.auc_interval(labels * 1.0, labels, np.arange(12))
    many = classification.auc_interval(np.repeat(labels, 20) * 1.0, np.repeat(labels, 20), np.arange(240))
    assert few.value == many.value == 1.0
    assert few.low < 0.85 < many.low < 1.0


def test_one_patient_of_a_class_says_nothing_and_one_class_has_no_auc():
    lone = classification.auc_interval([0.1, 0.2, 0.9, 0.8], [0, 0, 1, 1], [1, 2, 3, 3])
    assert (lone.value, lone.low, lone.high, lone.patients) == (1.0, 0.0, 1.0, 3)
    assert classification.auc_interval([0.1, 0.2], [1, 1], [1, 2]) is None
    assert classification.roc_band([0.1, 0.2], [1, 1], [1, 2]) is None


def test_the_patient_bootstrap_agrees_with_the_formula_where_there_are_many_patients_and_repeats_itself():
    study = imagined_study(np.random.default_rng(5), patients=150, images=3)
    formula, drawn = classification.auc_interval(*study), classification.bootstrap(classification.auc, *study)
    assert drawn.value == formula.value
    assert (drawn.low, drawn.high) == (pytest.approx(formula.low, abs=0.015), pytest.approx(formula.high, abs=0.015))
    assert drawn == classification.bootstrap(classification.auc, *study)


def test_the_roc_band_encloses_the_curve_and_clustering_widens_it():
    scores, labels, patients = imagined_study(np.random.default_rng(6), patients=60, images=6)
    band = classification.roc_band(scores, labels, patients)
    careless = classification.roc_band(scores, labels, np.arange(len(scores)))
    assert (band.low <= band.true_positive_rate + 1e-12).mean() > 0.95
    assert (band.high >= band.true_positive_rate - 1e-12).mean() > 0.95
    assert (careless.high - careless.low).mean() < 0.8 * (band.high - band.low).mean()
    assert band.patients == 60


def test_sensitivity_at_specificity_is_the_best_threshold_tried_by_hand():
    generator = np.random.default_rng(8)
    scores, labels = np.round(generator.normal(size=200), 1), generator.integers(0, 2, size=200)
    scores = scores + labels
    best = max(
        (scores[labels == 1] >= at).mean() for at in [np.inf, *scores] if (scores[labels == 0] < at).mean() >= 0.9
    )
    assert classification.sensitivity_at_specificity(scores, labels, 0.9) == pytest.approx(best)


# One score a patient, and calibration.


def test_a_patients_score_is_its_highest_and_it_is_positive_if_any_image_is():
    scores, labels, patients = classification.patient_scores(
        [0.2, 0.9, 0.4, 0.1, 0.3], [0, 0, 1, 0, 0], [7, 7, 3, 3, 5]
    )
    assert patients.tolist() == [3, 5, 7]
    assert scores.tolist() == [0.4, 0.3, 0.9]
    assert labels.tolist() == [1, 0, 0]


def test_a_calibrated_model_has_almost_no_calibration_error_and_an_overconfident_one_its_excess():
    generator = np.random.default_rng(9)
    chance = generator.uniform(0.2, 0.8, size=40_000)
    happened = (generator.random(40_000) < chance).astype(int)
    assert classification.expected_calibration_error(chance, happened) < 0.02
    overconfident = np.where(chance > 0.5, 0.95, 0.05)
    expected = 0.95 - chance[chance > 0.5].mean()
    assert classification.expected_calibration_error(overconfident, happened) == pytest.approx(expected, abs=0.02)
    assert classification.brier(chance, happened) == pytest.approx((chance * (1 - chance)).mean(), abs=0.01)
    assert classification.brier(chance, happened) < classification.brier(overconfident, happened)


def test_the_calibration_curve_counts_every_image_once_and_its_intervals_count_patients():
    generator = np.random.default_rng(10)
    chance = generator.random(400)
    happened = (generator.random(400) < chance).astype(int)
    alone = classification.calibration_curve(chance, happened, np.arange(400))
    grouped = classification.calibration_curve(chance, happened, np.arange(400) // 8)
    assert alone.images_B.sum() == grouped.images_B.sum() == 400
    assert (alone.patients_B == alone.images_B).all() and (grouped.patients_B < grouped.images_B).all()
    assert (grouped.high_B - grouped.low_B > alone.high_B - alone.low_B).all()
    assert ((alone.low_B <= alone.observed_B) & (alone.observed_B <= alone.high_B)).all()
    inside = (alone.low_B <= alone.mean_score_B) & (alone.mean_score_B <= alone.high_B)
    assert inside.mean() >= 0.8
    gap = (alone.images_B * np.abs(alone.mean_score_B - alone.observed_B)).sum() / 400
    assert classification.expected_calibration_error(chance, happened) == pytest.approx(gap)


def test_probabilities_keep_the_order_of_large_logits_and_add_up():
    logits = np.array([-40.0, -20.0, 0.0, 20.0, 25.0, 30.0], dtype=np.float32)
    values = classification.probabilities(logits)
    assert (np.diff(values) > 0).all() and values[2] == 0.5
    assert classification.probabilities(logits[:, None]).tolist() == values.tolist()
    assert classification.probabilities(np.array([[1e4, 0.0, -1e4]])).sum() == pytest.approx(1.0)


# What goes into result.json.


def test_the_summary_leaves_out_images_without_a_label_and_counts_what_is_left():
    scores, labels, patients = [0.9, 0.8, 0.2, 0.4, 0.6], [1, 1, 0, 0, -1], [1, 1, 2, 3, 4]
    by_slice = classification.summary(scores, labels, patients, "slice")
    by_patient = classification.summary(scores, labels, patients, "patient")
    assert (by_slice.auc, by_slice.patients, by_slice.images, by_slice.positives) == (1.0, 3, 4, 2)
    assert (by_patient.auc, by_patient.patients, by_patient.images, by_patient.positives) == (1.0, 3, 4, 1)
    assert by_slice.ece == pytest.approx((0.1 + 0.2 + 0.2 + 0.4) / 4)
    written = json.loads(json.dumps(by_slice.to_json(), allow_nan=False))
    assert {"unit", "auc", "auc_ci95", "patients", "ece"} <= written.keys()
    assert written["auc_ci95"][0] <= written["auc"] <= written["auc_ci95"][1]


def test_the_summary_of_one_class_or_of_nothing_says_so_instead_of_failing():
    lone = classification.summary([0.9, 0.8], [1, 1], [1, 2], "slice")
    assert (lone.auc, lone.auc_ci95, lone.patients) == (None, None, 2)
    empty = classification.summary([], [], [], "patient")
    assert (empty.auc, empty.patients, empty.images, empty.ece) == (None, 0, 0, None)


def test_the_summary_of_three_labels_is_the_macro_auc_with_an_interval_over_patients():
    generator = np.random.default_rng(11)
    labels = generator.integers(0, 3, size=120)
    scores = classification.probabilities(generator.normal(size=(120, 3)) + 2 * np.eye(3)[labels])
    found = classification.summary(scores, labels, np.arange(120) // 3, "slice")
    assert found.auc == pytest.approx(classification.macro_auc(scores, labels))
    assert found.auc_ci95[0] < found.auc < found.auc_ci95[1]
    assert (found.patients, found.images, found.positives) == (40, 120, None)


@pytest.mark.parametrize(
    "scores, labels, patients",
    [([0.1, np.nan], [0, 1], [1, 2]), ([0.1, 0.2], [0, 2], [1, 2]), ([0.1], [0, 1], [1, 2]), ([0.1, 0.2], [0, 1], [1])],
    ids=["a score that is not a number", "a third label", "too few scores", "too few patients"],
)
def test_input_without_sense_is_refused(scores, labels, patients):
    with pytest.raises(ValueError):
        classification.auc_interval(scores, labels, patients)
