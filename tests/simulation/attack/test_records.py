"""The attacks on a model of records: a head over public features is attacked as one of images; others are refused."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from builders.networks import records_study

from wardround.errors import UsageError
from wardround.networks.build import initial_network
from wardround.phantoms.stays import stays
from wardround_simulation.attack import canaries, checks, membership, run
from wardround_simulation.attack.system import System


@pytest.mark.slow
def test_canaries_reach_a_head_over_records() -> None:
    study = records_study("severity-head")
    scores_M, took_part_M = canaries.canary_scores(System(), study, canaries=40, seed=1)
    assert scores_M.shape == (40,) and scores_M[took_part_M].mean() > scores_M[~took_part_M].mean()


@pytest.mark.slow
@pytest.mark.parametrize("check", checks.CHECKS, ids=lambda one: one.__name__)
def test_every_check_of_the_system_passes_for_records(check) -> None:
    assert check(System(), records_study("severity-head"), seed=0).verdict != "FAIL"


def test_rows_with_missing_values_can_be_memorised() -> None:
    rows_NTV, died_N = stays(30, 1, hours=6)
    small_ND = membership._small(rows_NTV, np.arange(30))
    assert small_ND.shape == (30, 6 * rows_NTV.shape[2]) and np.isfinite(small_ND).all()
    drop_N = membership.memorised_drop(small_ND, died_N, np.arange(30) < 15, 2, seed=0)
    assert drop_N[:15].mean() > drop_N[15:].mean()


def test_a_recurrent_network_is_refused_in_one_line(tmp_path, monkeypatch) -> None:
    study = records_study("gru")
    assert initial_network(study).units == 32
    monkeypatch.setattr(run.run_files, "read_run", lambda folder: SimpleNamespace(study=study))
    with pytest.raises(UsageError, match="attack supports records only where a head over features trains, not gru"):
        run.attack_folder(tmp_path, stage=lambda _: None, pieces=lambda done, total: None)
