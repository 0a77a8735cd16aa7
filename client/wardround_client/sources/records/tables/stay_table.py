"""The stays of a site from its tables: one stay a patient, with its outcome."""

from __future__ import annotations

from collections.abc import Collection

from wardround.errors import DataError
from wardround.sources.records.study import RecordsData
from wardround_client.sources.records.events import Names
from wardround_client.sources.records.quality.counts import Counts
from wardround_client.sources.records.stays import Stays, stays_from
from wardround_client.sources.records.tables.patients import read_patients
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
    return stays_from(rows, ends, chosen=chosen, others=others, counts=counts)
