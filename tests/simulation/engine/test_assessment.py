"""What a task's assessment gets of a simulation's hospitals: rows to train on, rows to test on, and training."""

from __future__ import annotations

import numpy as np
import pytest

from wardround.study.load import Study, parse_study
from wardround.tasks.assessment import patient_offsets
from wardround_client.sources.cohort import Cohort
from wardround_simulation.engine.assessment import InProcessTrainer, other_sites, sites_of, sites_of_fold
from wardround_simulation.engine.in_process import Hospital

PATIENTS = 10


def study_of(**study) -> Study:
    return parse_study({
        "study": {"name": "t", "rounds": 1, "spare_rounds": 0, **study},
        "data": {"labels": ["benign", "malignant"], "image_size": 32},
        "model": {"name": "seed-cnn", "init": "random", "trainable": "all"},
        "training": {"learning_rate": 0.1},
        "privacy": {"epsilon": float("inf"), "delta": 1e-4, "max_grad_norm": 0.3, "nominal_patients": PATIENTS},
        "aggregation": {"nominal_sites": 2},
        "evaluation": {"holdout": 0.3},
    })  # fmt: skip


@pytest.fixture(scope="module")
def hospitals() -> list[Hospital]:
    """Two hospitals of ten patients, two images each; every seventh image has no label."""
    found = []
    for number, name in enumerate(("east", "west")):
        dice = np.random.default_rng(number)
        patient_N = np.repeat(np.arange(PATIENTS), 2).astype(np.int32)
        labels_N = dice.integers(0, 2, 2 * PATIENTS).astype(np.int16)
        labels_N[::7] = -1
        cohort = Cohort(
            values_N=dice.integers(0, 256, (2 * PATIENTS, 1, 32, 32), dtype=np.uint8),
            labels_N=labels_N,
            patient_N=patient_N,
            label_names=("benign", "malignant"),
            pseudonyms=tuple(f"{name}{patient}" for patient in range(PATIENTS)),
            holdout_rank_P=np.linspace(0, 1, PATIENTS),
            key=f"{number:064x}",
            prepared_by="test",
        )
        found.append(Hospital(name=name, cohort=cohort, inputs_N=cohort.values_N))
    return found


def test_a_patient_is_tested_on_or_trained_on_and_unlabelled_rows_are_neither(hospitals: list[Hospital]) -> None:
    for site, hospital in zip(sites_of(study_of(), hospitals), hospitals, strict=True):
        labelled_N = hospital.cohort.labels_N >= 0
        assert not (site.training_N & site.held_out_N).any()
        np.testing.assert_array_equal(site.training_N | site.held_out_N, labelled_N)
        assert set(site.patient_N[site.held_out_N]) == {0, 1, 2}
    (other, _) = other_sites(study_of(), hospitals)
    assert not other.training_N.any() and other.held_out_N.sum() == (other.labels_N >= 0).sum()


def test_a_fold_is_tested_on_the_others_trained_on_and_who_has_none_is_left_out(hospitals: list[Hospital]) -> None:
    fold_of = {f"east{patient}": patient % 3 for patient in range(PATIENTS - 1)}
    east, west = sites_of_fold(study_of(), hospitals, fold_of, 1)
    assert set(east.patient_N[east.held_out_N]) == {1, 4, 7}
    assert set(east.patient_N[east.training_N]) == {0, 2, 3, 5, 6, 8}
    assert not west.held_out_N.any() and not west.training_N.any()


def test_patients_of_two_sites_have_different_numbers(hospitals: list[Hospital]) -> None:
    assert patient_offsets(sites_of(study_of(), hospitals)) == [0, PATIENTS]
    assert patient_offsets([]) == [0]


def test_training_depends_on_the_training_rows_alone_and_on_the_setting(hospitals: list[Hospital]) -> None:
    study, trainer = study_of(), InProcessTrainer(hospitals)
    east, west = sites_of(study, hospitals)
    found = [
        trainer.federated(study, [east, west]), trainer.pooled(study, [east, west]), trainer.alone(study, east),
        trainer.alone(study, west),
    ]  # fmt: skip
    again = InProcessTrainer(hospitals).alone(study, east)
    for name in again:
        np.testing.assert_array_equal(again[name], found[2][name])  # nothing was learned from what was trained before
    differ = [
        any((one[name] != other[name]).any() for name in one) for one in found[2:3] for other in (found[0], found[3])
    ]
    assert all(differ)
    other_study = sites_of_fold(study, hospitals, {f"east{patient}": 1 for patient in range(PATIENTS)}, 0)[0]
    changed = trainer.alone(study, other_study)
    assert any((changed[name] != again[name]).any() for name in again)
