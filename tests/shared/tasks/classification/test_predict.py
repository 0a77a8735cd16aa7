"""What a classifier says: the highest logit counts, refusals follow the distance, damaged records are refused."""

import math

import numpy as np
import pytest

from wardround.errors import ModelError
from wardround.metrics.calibration import Calibration
from wardround.tasks.classification.predict import is_known, prediction_of, rules_of

CALIBRATION = Calibration(
    temperature=2.0, scale_variance=0.04, offset_variance=0.09, covariance=0.0, coverage=0.9,
    positive_from=-0.5, negative_to=1.0, patients=80,
)  # fmt: skip


def record(**changes):
    return {
        "labels": ["benign", "malignant"],
        "familiarity": {"threshold": 1.5},
        "calibration": CALIBRATION.to_json(),
        "federated_test": {
            "thresholds": [{"specificity": 0.9, "sensitivity": 0.7, "low": 0.5, "high": 0.8, "threshold": 0.8}]
        },
        **changes,
    }


def test_the_highest_logit_of_the_images_counts():
    found = prediction_of(np.array([[-1.0], [2.0], [0.5]]), rules_of(record()))
    assert found.logits == (2.0,)
    assert found.probabilities[1] == pytest.approx(1 / (1 + math.exp(-1.0)))
    assert sum(found.probabilities) == pytest.approx(1)


def test_a_decision_compares_the_uncalibrated_probability_with_the_threshold():
    rules = rules_of(record())
    just_below, just_above = math.log(0.799 / 0.201), math.log(0.801 / 0.199)
    assert [prediction_of(np.array([[one]]), rules).decisions[0].positive for one in (just_below, just_above)] == [
        False,
        True,
    ]


def test_label_sets_name_the_labels_that_are_not_ruled_out():
    rules = rules_of(record())
    sets = [prediction_of(np.array([[one]]), rules).label_set for one in (-3.0, 0.0, 3.0)]
    assert sets == [("benign",), ("benign", "malignant"), ("malignant",)]


def test_without_a_calibration_there_is_no_interval_and_no_set():
    found = prediction_of(np.array([[1.0]]), rules_of(record(calibration=None, federated_test=None)))
    assert (found.interval, found.label_set, found.decisions) == (None, None, ())
    assert found.probabilities[1] == pytest.approx(1 / (1 + math.exp(-1.0)))


def test_probabilities_of_several_labels_are_averaged_over_images():
    rules = rules_of(record(labels=["a", "b", "c"], calibration=None, federated_test=None))
    found = prediction_of(np.array([[0.0, 0.0, 0.0], [math.log(2), 0.0, 0.0]]), rules)
    assert found.probabilities == pytest.approx([(1 / 3 + 1 / 2) / 2, (1 / 3 + 1 / 4) / 2, (1 / 3 + 1 / 4) / 2])
    assert found.interval is None


def test_images_farther_than_the_threshold_are_unknown():
    assert is_known(np.array([1.4, 1.5, 1.6, np.nan]), rules_of(record())).tolist() == [True, True, False, False]


@pytest.mark.parametrize(
    "changes",
    [
        {"familiarity": None},
        {"calibration": {"temperature": 1.0}},
        {"federated_test": {"thresholds": [{"specificity": 0.9}]}},
        {"federated_test": {"thresholds": [{**record()["federated_test"]["thresholds"][0], "threshold": 7}]}},
        {"federated_test": {"thresholds": "many"}},
    ],
)
def test_a_damaged_record_is_refused_in_one_line(changes):
    with pytest.raises(ModelError, match=r"^model\.json: .*export the model again$"):
        rules_of(record(**changes))
