"""Patients' records as a source of data: what a study asks of them, and whether a prepared cohort answers it.

See `sources/registry.py` for who calls these functions.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wardround.errors import DataError
from wardround.sources.records.study import RecordsData
from wardround.sources.records.vocabulary import load_vocabulary
from wardround_client.sources.cohort import Cohort
from wardround_client.sources.records.quality import reasons

if TYPE_CHECKING:
    from wardround_client.sources.records.folder import RecordsSite
    from wardround_client.sources.records.ingest import IngestReport
    from wardround_client.sources.registry import Progress

REASONS = reasons.REASONS
SHOWS_IMAGES = False
REPORT_PAGE = "quality.html"
LEFT_OUT = ("unknown_variable", "unknown_column", "after_window", "later_stay", "no_value", "skipped")
WORDLESS = ("skipped", "unknown_column")  # tables often hold more than a study reads
UNKNOWN_PATIENTS = (
    "it is unknown which rows belong to the same patient, and privacy is promised per patient; add a column patient_id "
    "(docs/records.md), or --image-is-patient if every row is a different patient"
)
PREPARATION_VERSION = 1  # increase it when the same records would give different rows


def row_shape(data: RecordsData) -> tuple[int, int]:
    """Return the shape of one row: hours and variables."""
    return data.row_shape


def row_dtype(data: RecordsData) -> Any:
    """Return the dtype of a row, float32; NaN where nothing was measured."""
    return np.float32


def prepared_by(data: RecordsData) -> str:
    """Return everything besides the records that determines rows and labels: version and settings, as JSON."""
    settings = {
        "preparation": PREPARATION_VERSION,
        "vocabulary": load_vocabulary(data.vocabulary).sha256,
        **data.model_dump(include={"window_hours", "outcome", "outcome_above", "horizon_hours"}),
    }
    return json.dumps(settings, sort_keys=True)


def fits(cohort: Cohort, data: RecordsData) -> bool:
    """Return whether the cohort's rows have the variables, hours and outcome that a study asks for."""
    return cohort.prepared_by == prepared_by(data) and cohort.values_N.shape[1:] == row_shape(data)


def differences(cohort: Cohort, data: RecordsData) -> list[str]:
    """Return how the cohort's rows differ from those that a study asks for, one line each."""
    if fits(cohort, data):
        return []
    return [
        "the data were prepared with another vocabulary, other hours or another outcome: no patient takes part; run "
        "ingest again"
    ]


def synthetic_patients(data: RecordsData, rows: Sequence[int], generator: np.random.Generator) -> np.ndarray:
    """Return random rows with missing values, float32 (N, T, V): those of a patient are equal."""
    from wardround.sources.records.synthetic_rows import synthetic_rows

    of_patient = synthetic_rows(data, len(rows), seed=int(generator.integers(2**31))).numpy()
    return np.repeat(of_patient, rows, axis=0)


def forget_rows(folder: Path, hashes: Collection[str]) -> None:
    """Remove the measurements that a killed ingest left; beside them and the cohort, no file holds a value."""
    from wardround_client.sources.records.grid.parts import remove_parts

    if hashes:
        remove_parts(folder)


def discover(folder: Path, data: RecordsData, sites: int | None = None) -> Sequence[RecordsSite]:
    """Return the sites found in a folder, sorted by name (`folder.py`)."""
    from wardround_client.sources.records import folder as records

    return records.discover(folder, data, sites)


def of_one_hospital(folder: Path, data: RecordsData, name: str) -> RecordsSite:
    """Return a folder as the data of one hospital, whatever its layout. It may have one outcome only."""
    from wardround_client.sources.records import folder as records

    found = records.discover(folder, data, every_label=False)
    if len(found) > 1:
        raise DataError(f"{folder}: holds the data of several sites; give the records of this hospital alone")
    return replace(found[0], name=name)


def shared_patients(one: Iterable[RecordsSite], other: Iterable[RecordsSite]) -> int:
    """Return the number of patients in both."""
    ours, theirs = (frozenset().union(*(site.chosen for site in sites)) for sites in (one, other))
    return len(ours & theirs)


def worker_pool(workers: int) -> AbstractContextManager[Any]:
    """Return nothing that ingests could share: records are read in this process."""
    return nullcontext()


def ingest(
    source: RecordsSite,
    data: RecordsData,
    folder: Path,
    key: bytes,
    *,
    workers: int,
    objectors: frozenset[str] = frozenset(),
    progress: Progress | None = None,
    pool: Any = None,
) -> IngestReport:
    """Prepare a site's cohort and its quality report (`ingest.py`)."""
    from wardround_client.sources.records import ingest as records

    return records.ingest(source, data, folder, key, objectors=objectors, progress=progress)
