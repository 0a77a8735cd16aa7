"""The attacks on a model of records: every check runs or says why it does not apply."""

from __future__ import annotations

import numpy as np
import pytest
from builders.networks import records_study

from wardround.phantoms.stays import stays
from wardround_client.privacy.plan import plan_from_study
from wardround_client.sources.records.source import row_shape
from wardround_client.sources.registry import source_of
from wardround_simulation.attack import canaries, checks, membership, run_files
from wardround_simulation.attack.system import System


@pytest.mark.slow
def test_canaries_reach_a_head_over_records() -> None:
    study = records_study("severity-head")
    scores_M, took_part_M = canaries.canary_scores(System(), study, canaries=40, seed=1)
    assert scores_M.shape == (40,) and scores_M[took_part_M].mean() > scores_M[~took_part_M].mean()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["severity-head", "gru"])
@pytest.mark.parametrize("check", checks.CHECKS, ids=lambda one: one.__name__)
def test_every_check_of_the_system_passes_for_records(check, name: str) -> None:
    assert check(System(), records_study(name), seed=0).verdict == "pass"


def test_rows_with_missing_values_can_be_memorised() -> None:
    rows_NTV, died_N = stays(30, 1, hours=6)
    small_ND = membership._small(rows_NTV, np.arange(30))
    assert small_ND.shape == (30, 6 * rows_NTV.shape[2]) and np.isfinite(small_ND).all()
    drop_N = membership.memorised_drop(small_ND, died_N, np.arange(30) < 15, 2, seed=0)
    assert drop_N[:15].mean() > drop_N[15:].mean()


def test_every_check_that_does_not_apply_says_why() -> None:
    study = records_study("gru", privacy={"sampling_rate": 0.5, "images_per_patient": 1})
    plan = plan_from_study(study)
    assert "only for a head over features, not for gru" in str(run_files._not_undone(study, plan))
    head = records_study("severity-head", training={"local_steps": 2, "learning_rate": 0.1})
    assert "more than one plain step" in str(run_files._not_undone(head, plan_from_study(head)))
    plain = records_study("severity-head")
    assert run_files._not_undone(plain, plan_from_study(plain)) is None
    without = records_study("severity-head", privacy={"epsilon": "inf"})
    assert run_files._not_undone(without, plan_from_study(without)) == "there is no noise: ε = ∞"


@pytest.mark.parametrize("rate", [1.0, 0.5])
def test_one_patient_of_a_recurrent_network_moves_the_sum_by_no_more_than_c(rate: float) -> None:
    """Also where one row of each patient is drawn: an invented patient's rows are equal, and no draw decides."""
    study = records_study("gru", privacy={"sampling_rate": rate, "images_per_patient": 1})
    found = checks.sensitivity(System(), study, seed=0)
    assert found.verdict == "pass", found.measured


def test_invented_patients_have_equal_rows_with_missing_values() -> None:
    data = records_study("gru").data
    rows_NTV = source_of(data).synthetic_patients(data, (2, 1, 3), np.random.default_rng(0))
    assert rows_NTV.shape == (6, *row_shape(data)) and rows_NTV.dtype == np.float32
    assert np.array_equal(rows_NTV[0], rows_NTV[1], equal_nan=True)
    assert not np.array_equal(rows_NTV[1], rows_NTV[2], equal_nan=True)
    assert 0.3 < np.isnan(rows_NTV).mean() < 0.95


def test_canaries_of_a_recurrent_network_are_planted_in_a_head_over_features() -> None:
    audited = canaries._head_study(records_study("gru", privacy={"images_per_patient": 1}), 0.1)
    assert (audited.model.name, audited.model.trainable) == ("tabular-head", "head")
