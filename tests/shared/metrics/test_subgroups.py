"""Figures by group: what is suppressed, that nothing suppressed can be computed from the rest, and the figures."""

from __future__ import annotations

import json
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wardround.metrics.subgroups import (
    LEAST_OF_A_LABEL,
    LEAST_PATIENTS,
    SEVERAL,
    UNKNOWN,
    Scored,
    all_patients,
    group_table,
    groups_by_patient,
    open_groups,
    rate,
)

sizes = st.dictionaries(st.sampled_from("ABCDEF"), st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=1)


def rows_of(counts: dict[str, tuple[int, int]]) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Groups, labels and patients with one image a patient: group -> (negatives, positives)."""
    groups = [name for name, (negative, positive) in counts.items() for _ in range(negative + positive)]
    labels = [label for negative, positive in counts.values() for label in [0] * negative + [1] * positive]
    return groups, np.array(labels, int), np.arange(len(groups))


def may_be_seen(negative: int, positive: int, both: bool) -> bool:
    """Whether a cell of so many patients may be known: nobody, or enough patients of each label that occurs."""
    least = LEAST_OF_A_LABEL if both else 0
    return negative + positive == 0 or (
        negative + positive >= LEAST_PATIENTS and (not both or min(negative, positive) >= least)
    )


@given(sizes)
@settings(max_examples=300)
def test_nothing_suppressed_can_be_computed_from_the_total_and_what_is_shown(counts) -> None:
    """The total minus any of the groups shown is a cell that may be seen too."""
    groups, labels_N, patients_N = rows_of(counts)
    if not groups:
        return
    shown, both = open_groups(groups, labels_N, patients_N), len(set(labels_N.tolist())) == 2
    for number in range(1, len(shown) + 1):
        for chosen in combinations(sorted(shown), number):
            rest = [pair for name, pair in counts.items() if name not in chosen]
            assert all(may_be_seen(*counts[name], both) for name in chosen)
            assert may_be_seen(sum(pair[0] for pair in rest), sum(pair[1] for pair in rest), both)


def test_a_group_just_below_a_limit_takes_the_smallest_other_group_with_it() -> None:
    def shown(**counts: tuple[int, int]) -> set[str]:
        return open_groups(*rows_of(counts))

    assert shown(a=(5, 5), b=(20, 20)) == {"a", "b"}
    assert shown(a=(5, 4), b=(20, 20)) == set(), "b would tell a"
    assert shown(a=(5, 4), b=(10, 10), c=(20, 20)) == {"c"}, "the smallest hides a"
    assert shown(a=(6, 4), b=(10, 10)) == set(), "too few of one label"
    assert shown(a=(4, 4), b=(4, 4), c=(20, 20)) == {"c"}, "two small ones hide each other"
    assert shown(a=(12, 0), b=(9, 0)) == set() and shown(a=(12, 0), b=(10, 0)) == {"a", "b"}, "one label only"


def test_many_images_of_few_patients_are_few_patients() -> None:
    patients_N = np.repeat(np.arange(9), 20)
    assert open_groups(["a"] * 180, np.tile([0, 1], 90), patients_N) == set()


def test_a_patient_in_two_groups_is_refused_and_groups_by_patient_avoids_it() -> None:
    values, patients_N = ["x", "y", "", "x", "", ""], np.array([0, 0, 1, 1, 2, 2])
    with pytest.raises(ValueError, match="two groups"):
        open_groups(values, np.zeros(6, int), patients_N)
    assert groups_by_patient(values, patients_N, ("x", "y")) == [SEVERAL, SEVERAL, "x", "x", UNKNOWN, UNKNOWN]
    assert groups_by_patient(values, patients_N, ("x", "y"), largest=True)[:2] == ["y", "y"]


def scored(patients: int = 200, seed: int = 0) -> tuple[Scored, list[str]]:
    """Good scores in group a, useless ones in group b, and a small group c; two images a patient."""
    dice = np.random.default_rng(seed)
    group_P = ["a" if p < patients / 2 else "b" for p in range(patients)] + ["c"] * 30
    label_P = dice.integers(0, 2, patients + 30)
    useful_P = np.array([name == "a" for name in group_P])
    scores_P = 1 / (1 + np.exp(-(dice.normal(size=patients + 30) + 3 * (label_P - 0.5) * useful_P)))
    patients_N = np.repeat(np.arange(patients + 30), 2)
    rows = Scored(scores=scores_P[patients_N], labels_N=label_P[patients_N], patients_N=patients_N)
    return rows, [group_P[p] for p in patients_N]


def test_the_table_shows_where_a_model_works() -> None:
    rows, groups = scored()
    table = group_table("kind", groups, ("a", "b", "c"), rows, thresholds=(0.5,))
    good, bad = table.groups["a"], table.groups["b"]
    assert good is not None and bad is not None and list(table.groups) == ["a", "b", "c"]
    assert good.patients == bad.patients == 100 and good.auc is not None and bad.auc is not None
    assert good.auc > 0.95 > 0.65 > bad.auc and good.auc_ci95 is not None and good.auc_ci95[0] > 0.9
    at = good.thresholds[0]
    assert at.sensitivity.value > 0.85 and at.sensitivity.patients + at.specificity.patients == 100
    assert at.sensitivity.low < at.sensitivity.value < at.sensitivity.high <= 1
    assert good.observed is not None and good.observed.value == pytest.approx((good.positives or 0) / 100)
    everyone = all_patients(rows)
    assert everyone is not None and everyone.patients == 230
    assert json.loads(json.dumps(table.to_json(), allow_nan=False))["groups"]["a"]["patients"] == 100


def test_calibrated_probabilities_change_the_calibration_and_nothing_else() -> None:
    rows, groups = scored()
    plain = group_table("kind", groups, (), rows, (0.5,)).groups["a"]
    shifted = Scored(**{**vars(rows), "calibrated_N": rows.scores / 2})
    other = group_table("kind", groups, (), shifted, (0.5,)).groups["a"]
    assert plain is not None and other is not None
    assert (plain.auc, plain.thresholds) == (other.auc, other.thresholds)
    assert other.predicted == pytest.approx((plain.predicted or 0) / 2) and other.brier != plain.brier


def test_more_than_two_labels_have_an_auc_and_no_threshold() -> None:
    dice, labels_N = np.random.default_rng(1), np.arange(90) % 3
    scores = np.eye(3)[labels_N] + dice.random((90, 3))
    rows = Scored(scores=scores / scores.sum(1, keepdims=True), labels_N=labels_N, patients_N=np.arange(90))
    table = group_table("kind", ["a"] * 45 + ["b"] * 45, (), rows, (0.5,))
    one = table.groups["a"]
    assert one is not None and one.auc is not None and one.auc > 0.8 and one.thresholds == () and one.positives is None


def test_nobody_and_too_few_have_no_figures() -> None:
    nobody = Scored(scores=np.empty(0), labels_N=np.empty(0, int), patients_N=np.empty(0, int))
    assert all_patients(nobody) is None and group_table("kind", [], (), nobody).groups == {}
    rows, _ = scored()
    assert all_patients(rows.of(rows.patients_N < 9)) is None


@pytest.mark.parametrize("count, of, low, high", [(0, 10, 0.0, 0.2775), (8, 10, 0.4902, 0.9433), (10, 10, 0.7225, 1.0)])
def test_the_interval_is_wilsons(count: int, of: int, low: float, high: float) -> None:
    """Against scipy.stats.binomtest(...).proportion_ci(method="wilson")."""
    found = rate(count, of)
    assert (found.low, found.high) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))
