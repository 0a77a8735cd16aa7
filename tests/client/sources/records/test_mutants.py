"""Mutated rows and resources: no traceback, and nothing impossible reaches a cohort.

Mutations are random from a fixed seed: cells replaced, removed and added, bytes changed, rows cut and doubled. The
default run mutates some ten thousand; the slow one a million.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from builders.fhir import encounter, observation, patient
from builders.records import ICU, KEY, table

from wardround.errors import DataError
from wardround.sources.records.vocabulary import load_vocabulary
from wardround_client.sources.cohort import open_cohort
from wardround_client.sources.records import source

PATIENTS = 200
DEATH = ICU.model_copy(update={"outcome": "in_hospital_death"})
pytestmark = pytest.mark.filterwarnings("error")  # numpy's too: an overflow is a mistake
JUNK = (
    *("", " ", "-", "?", "NaN", "inf", "1e400", "-1e308", "1E+17", "0x10", "1_000", "1.2.3", "<0.5", "36,5", "--1"),
    *("-1", "0", "999999999999999999999999", "2026-02-30T25:61", "0001-01-01T00:00", "9999-12-31T23:59:59+14:00"),
    *('"', '""', "'", '"a', "a\0b", "\ufeff", "\u0661\u0662", "\u2028", "é", "𝟛", "=1+1", "\t", "a" * 5000, "[]", "{}"),
)  # fmt: skip
BYTES = (b"\0", b"\xff", b'"', b",", b"\r", b"\n", b"\xc3", b"\xf0\x9f", b"\x1a", b"\\", b";", b"\t")


def mutated(row: list[str], dice: np.random.Generator) -> bytes:
    """One changed row, perhaps several rows by then."""
    kind, at = int(dice.integers(6)), int(dice.integers(len(row)))
    row = list(row)
    if kind <= 1:
        row[at] = JUNK[int(dice.integers(len(JUNK)))]
    elif kind == 2:
        del row[at]
    elif kind == 3:
        row.insert(at, JUNK[int(dice.integers(len(JUNK)))])
    line = ",".join(row).encode("utf-8", "surrogatepass")
    place = int(dice.integers(len(line) + 1))
    if kind == 4:
        return line[:place] + BYTES[int(dice.integers(len(BYTES)))] + line[place + 1 :]
    return line[:place] if kind == 5 else line


def rows_of(count: int, dice: np.random.Generator, people: int = PATIENTS) -> list[list[str]]:
    names = [
        variable.name for variable in load_vocabulary("icu").variables if variable.kind in ("series", "sum", "event")
    ]
    centres = {variable.name: variable.centre for variable in load_vocabulary("icu").variables}
    patients, hours = dice.integers(0, people, count), np.round(dice.uniform(0, 48, count), 4)
    variables = dice.integers(0, len(names), count)
    return [
        [f"p{patient}", f"{hour}", names[place], f"{centres[names[place]]}"]
        for patient, hour, place in zip(patients.tolist(), hours.tolist(), variables.tolist(), strict=True)
    ]


def check_cohort(folder: Path, people: int = PATIENTS) -> None:
    cohort, variables = open_cohort(folder), load_vocabulary("icu").variables
    assert 0 < cohort.patient_count <= people
    for row in cohort.values_N:
        seen = ~np.isnan(row)
        assert (row[seen] >= np.broadcast_to([one.lowest for one in variables], row.shape)[seen]).all()
        assert (row[seen] <= np.broadcast_to([one.highest for one in variables], row.shape)[seen]).all()


@pytest.mark.parametrize("clock", ["hours", "time"])
@pytest.mark.parametrize("count", [6_000, pytest.param(500_000, marks=pytest.mark.slow)])
def test_mutated_rows_give_no_traceback(tmp_path: Path, count: int, clock: str) -> None:
    dice, people = np.random.default_rng(count), count // 30
    rows = rows_of(2 * count, dice, people)
    if clock == "time":
        for row in rows:
            row[1] = f"2026-01-{1 + int(float(row[1]) // 24):02d}T{int(float(row[1]) % 24):02d}:15"
    lines = [mutated(row, dice) if number % 2 else ",".join(row).encode() for number, row in enumerate(rows)]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "events.csv").write_bytes(b"\n".join([f"patient_id,{clock},variable,value".encode(), *lines]))
    patients = [(f"p{number}", number % 2, "2026-01-01T00:00", 60) for number in range(people)]
    table(tmp_path / "data" / "patients.csv", ("patient_id", "died", "admission_time", "age"), patients)
    (site,) = source.discover(tmp_path / "data", ICU)
    report = source.ingest(site, ICU, tmp_path / "out", KEY, workers=1)
    assert report.values > 0.8 * count, "a mutated row costs no other row"
    check_cohort(tmp_path / "out", people)


@pytest.mark.parametrize("count", [300, pytest.param(5_000, marks=pytest.mark.slow)])
def test_mutated_tables_of_patients_give_one_line_or_a_cohort(tmp_path: Path, count: int) -> None:
    """The header is mutated too, so most of these are refused."""
    dice, used = np.random.default_rng(count), 0
    table(tmp_path / "data" / "events.csv", ("patient_id", "hours", "variable", "value"), rows_of(400, dice))
    for _ in range(count // 10):
        rows = [
            ["patient_id", "died", "site", "age", "Sex"],
            *([f"p{n}", f"{n % 2}", "north", "60", "1"] for n in range(PATIENTS)),
        ]
        chosen = set(dice.integers(0, len(rows), 1 + int(dice.integers(20))).tolist())
        lines = [mutated(row, dice) if number in chosen else ",".join(row).encode() for number, row in enumerate(rows)]
        (tmp_path / "data" / "patients.csv").write_bytes(b"\n".join(lines))
        try:
            for site in source.discover(tmp_path / "data", ICU):
                source.ingest(site, ICU, tmp_path / "out", KEY, workers=1)
                used += 1
        except DataError as error:
            assert "\n" not in str(error)
    assert used


@pytest.mark.parametrize("count", [3_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_mutated_resources_give_no_traceback(tmp_path: Path, count: int) -> None:
    dice = np.random.default_rng(count)
    stays = [
        part
        for number in range(PATIENTS)
        for part in (
            patient(f"p{number}"),
            encounter(f"p{number}", "2026-01-01T00:00:00Z", "2026-01-09T00:00:00Z", "exp" if number % 2 else "home"),
        )
    ]
    seen = [
        observation(f"p{number % PATIENTS}", "8867-4", 80, "/min", f"2026-01-01T{number % 24:02d}:30:00Z")
        for number in range(2 * count)
    ]
    lines = [json.dumps(one).encode() for one in (*stays, *seen)]
    for number in range(len(stays), len(lines), 2):
        line, at, kind = lines[number], int(dice.integers(len(lines[number]))), int(dice.integers(4))
        junk = JUNK[int(dice.integers(len(JUNK)))].encode()
        changes = (
            line[:at],
            line[:at] + junk + line[at:],
            line[:at] + line[at + 7 :],
            line[:at] + dice.bytes(3) + line[at:],
        )
        lines[number] = changes[kind]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "all.ndjson").write_bytes(b"\n".join(lines))
    (site,) = source.discover(tmp_path / "data", DEATH)
    source.ingest(site, DEATH, tmp_path / "out", KEY, workers=1)
    check_cohort(tmp_path / "out")
