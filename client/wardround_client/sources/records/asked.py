"""Reads the records of patients about whom a model is asked, by the same checks and hours as ingestion.

No outcome is needed, because it is what the model is asked for; if the files hold one, it is not used. Source files are
opened read-only. Everything is in memory: a model is asked about the patients of a ward, not of a cohort.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from wardround.errors import DataError
from wardround.sources.records.study import RecordsData
from wardround.sources.records.vocabulary import load_vocabulary
from wardround.storage.text_file import path_text
from wardround_client.sources.records.events import Names, joined
from wardround_client.sources.records.fhir.stays import stay_rows
from wardround_client.sources.records.folder import at_top, measurements_of
from wardround_client.sources.records.grid.checks import Limits, checked
from wardround_client.sources.records.grid.hours import Grid, cells_of, rows_of
from wardround_client.sources.records.quality.counts import Counts
from wardround_client.sources.records.quality.reasons import REASONS
from wardround_client.sources.records.stays import HOUR_S, stays_from
from wardround_client.sources.records.tables.long_table import Owners
from wardround_client.sources.records.tables.patients import read_patients

MOST_PATIENTS = 10_000
WORDLESS = frozenset({"unknown_column", "skipped", "later_stay", "unknown_outcome", "at_end_of_window"})


@dataclass(frozen=True, kw_only=True, eq=False)
class AskedRecords:
    """The rows of P patients, (P, T, V), with the ids that the files give them, and what could not be used."""

    ids: tuple[str, ...] = field(repr=False)
    rows_PTV: np.ndarray  # float32, in the vocabulary's units, NaN where nothing was measured
    not_used: Mapping[str, int]  # title of the reason -> how often


def read_asked(folder: Path, data: RecordsData) -> AskedRecords:
    """Read the records in a folder: long tables with patients.csv, a wide table, or FHIR (docs/records.md).

    Raises:
        DataError: There is no folder, it holds no records, several tables with one row a patient, or too many patients.
    """
    where = path_text(folder)
    if not folder.is_dir():
        raise DataError(f"{where}: no such folder; give the folder with the patients' records")
    pools = at_top(folder.resolve(), data)
    if len(pools) != 1:
        several = "holds several tables with one row a patient" if pools else "no records found in it"
        raise DataError(f"{where}: {several}; give one folder as docs/records.md shows it")
    site, counts, vocabulary = pools[0], Counts(), load_vocabulary(data.vocabulary)
    names, grid = Names(vocabulary), Grid(vocabulary=vocabulary, hours=data.window_hours)
    if site.fhir:
        rows = stay_rows(site.fhir, data, names, counts)
    elif site.patients is None:
        raise DataError(f"{where}: has no table of patients; give a patients.csv with a column patient_id")
    else:
        rows = read_patients(site.patients, data, names, counts, wide=site.wide)
    stays, _ = stays_from(rows, rows, chosen=None, others=None, counts=counts)
    if len(stays) > MOST_PATIENTS:
        raise DataError(
            f"{where}: holds {len(stays):,} patients, and at most {MOST_PATIENTS:,} are asked about at once"
        )
    owners = Owners(index={name: place for place, name in enumerate(stays.ids)}, others=())
    limits = Limits(vocabulary=vocabulary, window_s=data.window_hours * HOUR_S, outcome_s_P=np.full(len(stays), np.inf))
    parts = [checked(stays.events, limits, counts)]
    parts += [checked(found, limits, counts) for found in measurements_of(site, owners, stays, names, counts, None)]
    cells = cells_of(joined(parts), grid, counts)
    kept_P = np.ones(len(stays), dtype=bool)
    made = list(rows_of(cells, 0, len(stays), kept_P, grid))
    return AskedRecords(
        ids=stays.ids,
        rows_PTV=np.stack(made) if made else np.empty((0, *grid.row_shape), np.float32),
        not_used={
            REASONS[code].title: count
            for code, count in sorted(counts.of_reason.items())
            if count and code not in WORDLESS
        },
    )
