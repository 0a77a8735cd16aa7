"""The stays of a site from its tables: one stay a patient, with its outcome."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import numpy as np

from wardround.errors import DataError
from wardround.sources.records.study import RecordsData
from wardround_client.sources.records.events import Names
from wardround_client.sources.records.quality.counts import Counts
from wardround_client.sources.records.stays import NO_LABEL, Stays
from wardround_client.sources.records.tables.patients import PatientRows, read_patients
from wardround_client.sources.records.tables.reader import TableFile


def read_stays(
    patients: TableFile | None,
    outcomes: TableFile | None,
    data: RecordsData,
    names: Names | None,
    counts: Counts,
    *,
    wide: bool = False,
    chosen: Collection[str] | None = None,
    others: Collection[str] | None = None,
) -> tuple[Stays, list[str] | None]:
    """Return one stay for each patient, and each patient's site if the tables name sites.

    Args:
        patients: The table of patients, or a wide table; None if there is none.
        outcomes: The table of outcomes; None if the outcome is a column of the table of patients.
        data: The study's data section.
        names: Finds the columns of variables; None reads none of them.
        counts: Counts what cannot be used.
        wide: Whether the table holds all measurements.
        chosen: The ids of the patients that are read; None: all.
        others: The ids of other sites' patients in the same tables; None: do not count who is in neither.

    Raises:
        DataError: A table is missing or lacks a column.
    """
    first = patients or outcomes
    if first is None:
        raise DataError("no table of patients; give a patients.csv or an outcomes.csv with a column patient_id")
    of_table = counts if others is not None else Counts()  # one of the sites that share a table counts what is nobody's
    rows = read_patients(first, data, names, of_table, wide=wide)
    if rows.has_sites and not all(rows.sites):
        raise DataError(f"{first.path}: a row names no site; fill the column, or leave it out")
    ends = read_patients(outcomes, data, None, of_table) if outcomes is not None else rows
    if not ends.has_outcome:
        raise DataError(
            f"{(outcomes or first).path}: has no column {data.outcome}, which is the outcome of the study; add it, or "
            "put the outcomes into a table outcomes.csv with a column patient_id"
        )
    if data.horizon_hours is not None and not ends.has_outcome_time:
        raise DataError(
            f"{(outcomes or first).path}: the study needs to know when the outcome happened; add the column "
            "outcome_hours (since admission) or outcome_time"
        )
    kept_R = _first_stays(rows, chosen, counts)
    index_R = np.full(len(rows.ids), -1)
    index_R[kept_R] = np.arange(len(kept_R))
    own_N = index_R[rows.events.patient_N] >= 0
    events = rows.events.where(own_N)
    events = replace(events, patient_N=index_R[events.patient_N].astype(np.int32))
    wrong_N = np.isnan(events.value_N)
    counts.add_rows("not_a_number", events.patient_N[wrong_N], events.variable_N[wrong_N])
    if ends is rows:
        counts.add_rows("unknown_outcome", np.flatnonzero(rows.unknown_outcome_R[kept_R]))
    stays = Stays(
        ids=tuple(rows.ids[row] for row in kept_R),
        admission_s_P=rows.admission_s_R[kept_R],
        zoned_P=rows.zoned_R[kept_R],
        label_P=rows.label_R[kept_R],
        outcome_s_P=_since_admission(rows, kept_R, rows, kept_R),
        events=events.where(~wrong_N),
    )
    sites = [rows.sites[row] for row in kept_R] if rows.has_sites else None
    return (stays if ends is rows else _with_outcomes(stays, rows, kept_R, ends, others, counts)), sites


def _first_stays(rows: PatientRows, chosen: Collection[str] | None, counts: Counts) -> np.ndarray:
    """Return the row of each patient's first stay, in the order in which the patients come."""
    first: dict[str, int] = {}
    admission_R = np.where(np.isnan(rows.admission_s_R), np.inf, rows.admission_s_R)
    missing = later = 0
    for row, name in enumerate(rows.ids):
        if not name:
            missing += 1
        elif chosen is None or name in chosen:
            before = first.setdefault(name, row)
            if before != row:
                later += 1
                if admission_R[row] < admission_R[before]:
                    first[name] = row
    counts.add("no_patient", missing)
    counts.add("later_stay", later)
    return np.array(list(first.values()), dtype=np.int64)


def _since_admission(ends: PatientRows, end_P: np.ndarray, rows: PatientRows, row_P: np.ndarray) -> np.ndarray:
    """Return when the outcome happened, in seconds since admission; NaN where either time is unknown."""
    seconds_P = ends.outcome_s_R[end_P]
    if not ends.outcome_is_dated:
        return seconds_P
    comparable_P = ends.outcome_zoned_R[end_P] == rows.zoned_R[row_P]
    return np.where(comparable_P, seconds_P - rows.admission_s_R[row_P], np.nan)


def _with_outcomes(
    stays: Stays,
    rows: PatientRows,
    kept_R: np.ndarray,
    ends: PatientRows,
    others: Collection[str] | None,
    counts: Counts,
) -> Stays:
    """Return the stays with the outcomes of their own table."""
    found: dict[str, int] = {}
    two: set[str] = set()
    for end, name in enumerate(ends.ids):
        if name and found.setdefault(name, end) != end and ends.label_R[found[name]] != ends.label_R[end]:
            two.add(name)
    known = set(stays.ids)
    if others is not None:
        counts.add("unknown_patient", sum(name not in known and name not in others for name in found))
    counts.add_rows("two_outcomes", np.flatnonzero([name in two for name in stays.ids]))
    end_P = np.array([-1 if name in two else found.get(name, -1) for name in stays.ids])
    has_P = end_P >= 0
    counts.add_rows("unknown_outcome", np.flatnonzero(has_P & ends.unknown_outcome_R[end_P]))
    return replace(
        stays,
        label_P=np.where(has_P, ends.label_R[end_P], NO_LABEL).astype(np.int16),
        outcome_s_P=np.where(has_P, _since_admission(ends, end_P, rows, kept_R), np.nan),
    )
