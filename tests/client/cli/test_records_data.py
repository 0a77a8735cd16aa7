"""`wardround-site ingest` and `forget` with patients' records."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from builders.records import icu_folder, table
from paths import STUDIES
from typer.testing import CliRunner

from wardround.errors import DataError
from wardround_client.cli.main import app
from wardround_client.site.enrolment import enrol, pseudonym_key
from wardround_client.sources.cohort import open_cohort, pseudonym
from wardround_server.operations.folder import found

CANARY = "CANARY-4711"


def run(*words: object) -> str:
    """The output; an error on purpose is raised."""
    done = CliRunner().invoke(app, [*map(str, words)], env={"COLUMNS": "120"})
    if done.exception is not None:
        raise done.exception
    return done.output


@pytest.fixture
def site(tmp_path: Path) -> Path:
    found(tmp_path / "fed", "localhost", "test", 9092, None, datetime.now(UTC))
    enrol(tmp_path / "north", "north", "localhost:9092", tmp_path / "fed/ca/ca.crt")
    return tmp_path / "north"


def test_records_become_a_cohort_and_only_quarantine_names_a_patient(site: Path, tmp_path: Path) -> None:
    events = [(name, hour, "HR", 70 + hour) for name in (CANARY, "p2", "p3") for hour in range(8)]
    events += [(CANARY, 9, "HR", 999), ("p2", 9, "Hair", 1)]
    died = {CANARY: 0, "p2": 1, "p3": 0}
    data = icu_folder(tmp_path / "data", events, died, extra={"in_hospital_death": list(died.values())})
    before = {path: path.read_bytes() for path in data.iterdir()}
    words = ("ingest", data, "--study", STUDIES / "icu.toml", "--site", site)
    told = run(*words)
    assert "3 patients; 24 values in the hours that the study reads" in told
    assert "1  put aside: impossible values" in told and "left out: measurements of variables that" in told
    assert f"Quality report: {site / 'cohort' / 'quality.html'}" in told
    assert {path: path.read_bytes() for path in data.iterdir()} == before
    named = [path.name for path in site.rglob("*") if path.is_file() and CANARY.encode() in path.read_bytes()]
    assert named == ["quarantine.csv"] and CANARY not in told
    report = json.loads(run(*words, "--json"))
    assert report["quality"]["stays"] == 3 and report["quality"]["site"] == "north"
    assert json.loads(run("forget", CANARY, "--site", site, "--yes", "--json"))["rows_removed"] == 1
    assert "2 patients" in run(*words)
    assert pseudonym(pseudonym_key(site), CANARY) not in open_cohort(site / "cohort").pseudonyms


def test_rows_without_patients_are_refused_without_an_explicit_word(site: Path, tmp_path: Path) -> None:
    table(tmp_path / "data" / "clinic.csv", ("age", "sex", "chol", "num"), [(60, 1, 200, 0), (50, 1, 210, 2)])
    words = ("ingest", tmp_path / "data", "--study", STUDIES / "heart.toml", "--site", site)
    with pytest.raises(DataError, match="it is unknown which rows belong to the same patient"):
        run(*words)
    assert "2 patients" in run(*words, "--image-is-patient")


def test_several_sites_in_one_folder_are_refused(site: Path, tmp_path: Path) -> None:
    rows = [("a", "north", 60, 1, 200, 0), ("b", "south", 50, 1, 210, 2)]
    table(tmp_path / "data" / "all.csv", ("patient_id", "site", "age", "sex", "chol", "num"), rows)
    with pytest.raises(DataError, match="holds the data of several sites; give the records of this hospital alone"):
        run("ingest", tmp_path / "data", "--study", STUDIES / "heart.toml", "--site", site)
