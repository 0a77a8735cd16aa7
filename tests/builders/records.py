"""Folders of records, written for a test, and their ingest."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from wardround.sources.records.study import RecordsData
from wardround.sources.records.vocabulary import load_vocabulary
from wardround_client.sources.cohort import Cohort, open_cohort
from wardround_client.sources.records import source
from wardround_client.sources.records.ingest import IngestReport

KEY = b"site key of the tests, 32 bytes."
ICU = RecordsData(vocabulary="icu", outcome="died", labels=("survived", "died"))
HEART = RecordsData(vocabulary="heart", window_hours=1, outcome="num", labels=("healthy", "sick"))
EVENTS = ("patient_id", "hours", "variable", "value")


def table(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> Path:
    """Write a CSV file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
    return path


def icu_folder(
    folder: Path,
    events: Iterable[Sequence[object]],
    died: Mapping[str, object] | None = None,
    header: Sequence[str] = EVENTS,
    extra: Mapping[str, Sequence[object]] | None = None,
) -> Path:
    """Write events.csv and patients.csv; `extra` are more columns of patients.csv, one value for each of `died`."""
    died = died or {"a": 0, "b": 1}
    extra = extra or {}
    table(folder / "events.csv", header, events)
    rows = [
        (name, outcome, *(column[at] for column in extra.values())) for at, (name, outcome) in enumerate(died.items())
    ]
    table(folder / "patients.csv", ("patient_id", "died", *extra), rows)
    return folder


def prepared(folder: Path, out: Path, data: RecordsData = ICU, objectors: frozenset[str] = frozenset()) -> IngestReport:
    """Ingest the only site of a folder."""
    site = source.of_one_hospital(folder, data, "north")
    return source.ingest(site, data, out, KEY, workers=1, objectors=objectors)


def cohort_of(folder: Path, out: Path, data: RecordsData = ICU) -> Cohort:
    """Ingest the only site of a folder, and open its cohort."""
    prepared(folder, out, data)
    return open_cohort(out)


def hours_of(cohort: Cohort, row: int, name: str, data: RecordsData = ICU) -> dict[int, float]:
    """A variable's filled hours in a row: hour -> value."""
    column = np.asarray(cohort.values_N[row])[:, load_vocabulary(data.vocabulary).index(name)]
    return {int(hour): round(float(column[hour]), 4) for hour in np.flatnonzero(~np.isnan(column))}


def reasons_of(folder: Path) -> dict[str, int]:
    """What the quality report of a cohort's folder counted, repaired or refused."""
    found = json.loads((folder / "quality.json").read_text())
    return {**found["quarantined"], **found["remarks"]}


def quarantine_of(folder: Path) -> set[tuple[str, str, str]]:
    """Patient, code and variable of each line of quarantine.csv."""
    with open(folder / "quarantine.csv", newline="") as file:
        return {(line["patient_id"], line["code"], line["variable"]) for line in csv.DictReader(file)}
