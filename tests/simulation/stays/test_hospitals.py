"""Hospitals with simulated stays: their files are read back as the rows that were written."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from builders.networks import records_study
from typer.testing import CliRunner

from wardround.errors import DataError
from wardround.phantoms.stays import stays
from wardround.sources.records.vocabulary import load_vocabulary
from wardround.study.load import parse_study
from wardround_client.sources.cohort import open_cohort
from wardround_client.sources.registry import source_of
from wardround_simulation.cli.main import app
from wardround_simulation.engine import in_process
from wardround_simulation.engine.assessment import sites_of
from wardround_simulation.run.hospitals import prepare_hospitals
from wardround_simulation.stays.hospitals import HABITS, SITE_SEEDS, write_simulated_hospitals

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


def test_ingestion_undoes_every_habit(tmp_path: Path) -> None:
    study, vocabulary = records_study("gru", hours=48), load_vocabulary("icu")
    pressures = [vocabulary.index(name) for name in ("SysABP", "DiasABP")]  # simulated ones may contradict each other
    write_simulated_hospitals(tmp_path / "data", len(HABITS), PATIENTS, SEED)
    write_simulated_hospitals(tmp_path / "again", len(HABITS), PATIENTS, SEED)
    for path in (tmp_path / "data").rglob("*.csv"):
        assert path.read_bytes() == (tmp_path / "again" / path.relative_to(tmp_path / "data")).read_bytes()
    sites = source_of(study.data).discover(tmp_path / "data", study.data, None)
    for number, one in enumerate(prepare_hospitals(sites, study, tmp_path / "sites"), start=1):
        assert set(one.report.quality.quarantined) <= {"contradiction"}
        found = np.asarray(open_cohort(one.folder / "cohort").values_N)
        right_NTV, _ = stays(PATIENTS, SEED * SITE_SEEDS + number)
        found[..., pressures] = right_NTV[..., pressures]
        assert np.allclose(found, right_NTV, rtol=1e-3, atol=0.006, equal_nan=True)
        reasons = {2: "fahrenheit", 3: "factor_100"}
        assert reasons.get(number, "fahrenheit") in one.report.quality.remarks or number in (1, 4)


def test_a_horizon_decides_in_a_simulation_which_deaths_a_site_trains_and_tests_on(tmp_path: Path) -> None:
    """From the tables to the labels that training and testing get: only deaths within 24 hours after the window."""
    write_simulated_hospitals(tmp_path / "data", len(HABITS), 80, SEED)
    labels = {}
    for horizon_hours in (None, 24.0):
        study = records_study("severity-head", hours=48)
        study = parse_study({**study.model_dump(), "data": {**study.data.model_dump(), "horizon_hours": horizon_hours}})
        found = source_of(study.data).discover(tmp_path / "data", study.data, None)
        folders = {one.name: one.folder for one in prepare_hospitals(found, study, tmp_path / f"sites-{horizon_hours}")}
        sites = sites_of(study, in_process.open_hospitals(folders, study))
        assert all((site.training_N | site.held_out_N).all() for site in sites)
        labels[horizon_hours] = {site.name: int((site.labels_N == 1).sum()) for site in sites}
    for number in range(1, len(HABITS) + 1):
        with open(tmp_path / "data" / f"hospital-{number}" / "patients.csv", newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file, delimiter=HABITS[number - 1].separator))
        deaths = [float(row["outcome_hours"].replace(",", ".")) for row in rows if row["in_hospital_death"] == "1"]
        within = sum(hours <= 48 + 24 for hours in deaths)
        name = f"hospital-{number}"
        assert (labels[None][name], labels[24.0][name]) == (len(deaths), within) and min(deaths) > 48
    assert 0 < sum(labels[24.0].values()) < sum(labels[None].values())


def test_the_command_writes_records(tmp_path: Path) -> None:
    asked = ["phantom", str(tmp_path / "data"), "--records", "--sites", "2", "--patients", "3", "--json"]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 0 and json.loads(done.stdout)["sites"] == 2
    assert (tmp_path / "data" / "hospital-2" / "measurements.csv").is_file()


def test_simulated_stays_never_join_other_files(tmp_path: Path) -> None:
    (tmp_path / "kept.csv").touch()
    with pytest.raises(DataError, match="not empty"):
        write_simulated_hospitals(tmp_path, 1, 1, 1)
    with pytest.raises(DataError, match="at least one site"):
        write_simulated_hospitals(tmp_path / "new", 0, 1, 1)
