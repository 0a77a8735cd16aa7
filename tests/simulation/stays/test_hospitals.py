"""Hospitals with simulated stays: their files are read back as the rows that were written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from builders.networks import records_study

from wardround.errors import DataError
from wardround.phantoms.stays import stays
from wardround.sources.records.vocabulary import load_vocabulary
from wardround_client.sources.cohort import open_cohort
from wardround_client.sources.registry import source_of
from wardround_simulation.run.hospitals import prepare_hospitals
from wardround_simulation.stays.hospitals import SITE_SEEDS, write_simulated_hospitals

PATIENTS, SEED = 12, 5


def test_the_files_hold_the_simulated_stays(tmp_path: Path) -> None:
    write_simulated_hospitals(tmp_path / "data", 2, PATIENTS, SEED)
    study = records_study("gru", hours=48)
    sites = source_of(study.data).discover(tmp_path / "data", study.data, None)
    prepared = prepare_hospitals(sites, study, tmp_path / "sites")
    assert [one.name for one in prepared] == ["hospital-1", "hospital-2"]
    cohort = open_cohort(prepared[0].folder / "cohort")
    right_NTV, died_N = stays(PATIENTS, SEED * SITE_SEEDS + 1)
    assert sorted(cohort.labels_N.tolist()) == sorted(died_N.tolist())
    age = load_vocabulary("icu").index("Age")
    order, found = np.argsort(right_NTV[:, 0, age]), cohort.values_N[:]
    found = found[np.argsort(found[:, 0, age])]
    assert np.allclose(np.sort(right_NTV[:, 0, age]), found[:, 0, age])
    measured = ~np.isnan(right_NTV[order])
    assert measured.sum() == (~np.isnan(found)).sum()


def test_simulated_stays_never_join_other_files(tmp_path: Path) -> None:
    (tmp_path / "kept.csv").touch()
    with pytest.raises(DataError, match="not empty"):
        write_simulated_hospitals(tmp_path, 1, 1, 1)
    with pytest.raises(DataError, match="at least one site"):
        write_simulated_hospitals(tmp_path / "new", 0, 1, 1)
