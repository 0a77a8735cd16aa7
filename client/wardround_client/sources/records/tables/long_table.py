"""Long tables: one row for each measurement, with patient_id, hours or time, variable, value, and perhaps unit."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from wardround.errors import DataError
from wardround_client.sources.records.events import UNKNOWN, Events, Names
from wardround_client.sources.records.quality.counts import Counts
from wardround_client.sources.records.stays import Stays, TimesInStay, seconds_of, times_in_stay
from wardround_client.sources.records.tables.cells import numbers, texts_of, times
from wardround_client.sources.records.tables.measurements import converted, values_of
from wardround_client.sources.records.tables.reader import Columns, RowCount, TableFile, batches, converting

PATIENT, HOURS, TIME, VARIABLE, VALUE, UNIT = "patient_id", "hours", "time", "variable", "value", "unit"


@dataclass(frozen=True, kw_only=True)
class Owners:
    """Which patients the rows of a table may belong to."""

    index: Mapping[str, int]  # of this site's patients, by their id
    others: Collection[str]  # patients of other sites in the same files, and those left out
    count_strays: bool = True  # whether to count the rows of nobody; one of the sites that share a table does


def is_long(table: TableFile) -> bool:
    """Whether a table has one row for each measurement."""
    return {VARIABLE, VALUE} <= set(table.columns)


def columns_of(table: TableFile) -> tuple[str, ...]:
    """Return the columns that are read of a long table. Raises `DataError` if one is missing."""
    found = set(table.columns)
    if PATIENT not in found or not found & {HOURS, TIME}:
        raise DataError(
            f"{table.path}: a table of measurements needs the columns {PATIENT}, {HOURS} (since admission) or {TIME}, "
            f"{VARIABLE} and {VALUE}, and perhaps {UNIT}"
        )
    clock = HOURS if HOURS in found else TIME
    return (PATIENT, clock, VARIABLE, VALUE, *((UNIT,) if UNIT in found else ()))


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What the rows of one table are compared with."""

    table: TableFile
    owners: Owners
    stays: Stays
    names: Names
    counts: Counts

    @property
    def decimal_comma(self) -> bool:
        """Whether 36,5 is a number."""
        return self.table.separator not in ("", ",")

    def count(self, code: str, patient_N: np.ndarray, variable_N: np.ndarray, rows_N: np.ndarray) -> None:
        """Count a reason for the rows for which `rows_N` is true."""
        self.counts.add_rows(code, patient_N[rows_N], variable_N[rows_N])


def long_events(table: TableFile, owners: Owners, stays: Stays, names: Names, counts: Counts) -> Iterator[Events]:
    """Yield the measurements of this site's patients, batch by batch. What cannot be used is counted."""
    reading = Reading(table=table, owners=owners, stays=stays, names=names, counts=counts)
    rows = RowCount()
    for batch in batches(table, columns_of(table), rows):
        with converting(table):
            events = _events(batch, reading)
        yield events
    if owners.count_strays:
        counts.add("unreadable_row", rows.unreadable)


def _events(batch: Columns, reading: Reading) -> Events:
    names, counts = reading.names, reading.counts
    patient_N = _patients(batch, reading.owners, counts)
    mine_N = patient_N != UNKNOWN
    if not mine_N.all():
        kept = pa.array(np.flatnonzero(mine_N))
        batch, patient_N = {name: column.take(kept) for name, column in batch.items()}, patient_N[mine_N]
    variable_N, name_rank_N = _variables(batch, names, counts)
    found = values_of(batch[VALUE], variable_N, names, reading.decimal_comma)
    value_N = found.value_N
    use_N = (variable_N != UNKNOWN) & ~np.isnan(value_N)
    reading.count("not_a_number", patient_N, variable_N, found.wrong_N)
    counts.add("no_value", int(((variable_N != UNKNOWN) & np.isnan(value_N) & ~found.wrong_N).sum()))
    if UNIT in batch:
        value_N, changed_N, strange_N = converted(value_N, batch[UNIT], variable_N, names)
        reading.count("unknown_unit", patient_N, variable_N, strange_N & use_N)
        reading.count("unit_converted", patient_N, variable_N, changed_N & use_N)
        use_N &= ~strange_N
    second_N, timely_N = _seconds(batch, reading, patient_N, variable_N, use_N)
    use_N &= timely_N
    return Events(
        patient_N=patient_N[use_N],
        second_N=second_N[use_N],
        variable_N=variable_N[use_N],
        name_rank_N=name_rank_N[use_N],
        value_N=value_N[use_N],
    )


def _patients(batch: Columns, owners: Owners, counts: Counts) -> np.ndarray:
    codes_N, texts = texts_of(batch[PATIENT])
    index = np.array([UNKNOWN if not text else owners.index.get(text, UNKNOWN) for text in texts], np.int32)
    rows = np.bincount(codes_N, minlength=len(texts))
    for text, place, count in zip(texts, index.tolist(), rows.tolist(), strict=True):
        if not owners.count_strays:
            break
        if not text:
            counts.add("no_patient", count)
        elif place == UNKNOWN and text not in owners.others:
            counts.add("unknown_patient", count)
    return index[codes_N]


def _variables(batch: Columns, names: Names, counts: Counts) -> tuple[np.ndarray, np.ndarray]:
    codes_N, texts = texts_of(batch[VARIABLE])
    found = [(UNKNOWN, 0) if text is None else names.find(text) for text in texts]
    rows = np.bincount(codes_N, minlength=len(texts))
    for text, (place, _), count in zip(texts, found, rows.tolist(), strict=True):
        if place == UNKNOWN and count:
            counts.add_unknown(text or "", count)
    table = np.array(found, np.int16).reshape(-1, 2)
    return table[codes_N, 0], table[codes_N, 1]


def _seconds(
    batch: Columns, reading: Reading, patient_N: np.ndarray, variable_N: np.ndarray, use_N: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the seconds since admission (0 if a variable needs no time), and whether each row has what it needs."""
    timeless_V = np.array([variable.of_the_stay for variable in reading.names.vocabulary.variables])
    timed_N = use_N & ~timeless_V[variable_N]
    if HOURS in batch:
        seconds_N = seconds_of(numbers(batch[HOURS], reading.decimal_comma).values_N)
        found = TimesInStay(seconds_N=seconds_N, unknown={"no_time": np.isnan(seconds_N)})
    else:
        read = times(batch[TIME])
        found = times_in_stay(reading.stays, patient_N, read.seconds_N, read.zoned_N, read.day_only_N)
    lost_N = timed_N & np.isnan(found.seconds_N)
    for code, rows_N in found.unknown.items():
        reading.count(code, patient_N, variable_N, lost_N & rows_N)
    # What holds for the whole stay needs no time.
    return np.rint(np.nan_to_num(found.seconds_N)).astype(np.int64), ~lost_N
