"""Tables with one row for each patient: `patients.*`, `outcomes.*`, and wide tables, which hold everything.

Names of arrays: R rows of a table.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wardround.errors import DataError, required
from wardround.sources.records.study import RecordsData
from wardround.storage.table import SHORTENED, same_text
from wardround_client.sources.records.events import UNKNOWN, Events, Names, joined
from wardround_client.sources.records.quality.counts import Counts
from wardround_client.sources.records.stays import NO_LABEL, StayRows, seconds_of
from wardround_client.sources.records.tables.cells import numbers, texts_of, times
from wardround_client.sources.records.tables.long_table import PATIENT
from wardround_client.sources.records.tables.measurements import values_of
from wardround_client.sources.records.tables.outcomes import OUTCOME_HOURS, OUTCOME_TIME, outcomes_of
from wardround_client.sources.records.tables.reader import Columns, RowCount, TableFile, batches, converting

SITE, ADMISSION = "site", "admission_time"


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Which columns of a table of patients are read."""

    table: TableFile
    data: RecordsData
    names: Names | None
    variables: dict[str, tuple[int, int]]  # column -> index and rank
    outcome: str | None
    clock: str | None  # the column that says when the outcome happened

    @property
    def decimal_comma(self) -> bool:
        """Whether 36,5 is a number."""
        return self.table.separator not in ("", ",")


def read_patients(
    table: TableFile, data: RecordsData, names: Names | None, counts: Counts, *, wide: bool = False
) -> StayRows:
    """Read a table of patients.

    Args:
        table: The table.
        data: The study's data section.
        names: Finds the columns of variables; None reads none of them.
        counts: Counts what cannot be read.
        wide: Whether the table holds all measurements. Otherwise only what is known once for the stay is read.

    Raises:
        DataError: The table has no rows, a column cannot be read, or a spreadsheet has shortened its patient ids.
    """
    outcome = same_text(data.outcome)
    layout = Layout(
        table=table,
        data=data,
        names=names,
        variables=_variables(table, data, names, wide, counts),
        outcome=outcome if outcome in table.columns else None,
        clock=next((name for name in (OUTCOME_HOURS, OUTCOME_TIME) if name in table.columns), None),
    )
    known = [name for name in (PATIENT, SITE, ADMISSION, layout.outcome, layout.clock) if name in table.columns]
    wanted = tuple(dict.fromkeys([*known, *layout.variables] or table.columns[:1]))
    rows = RowCount()
    parts, done = [], 0
    for batch in batches(table, wanted, rows):
        size = len(next(iter(batch.values())))
        with converting(table):
            parts.append(_rows(batch, layout, done, size))
        done += size
    counts.add("unreadable_row", rows.unreadable)
    if not done:
        raise DataError(f"{table.path}: has a header but no rows")
    return _joined(parts)


def _variables(
    table: TableFile, data: RecordsData, names: Names | None, wide: bool, counts: Counts
) -> dict[str, tuple[int, int]]:
    """Return the columns that are variables of the vocabulary, with index and rank; count the others."""
    if names is None:
        return {}
    own = {PATIENT, SITE, ADMISSION, same_text(data.outcome), OUTCOME_HOURS, OUTCOME_TIME}
    found = {name: names.find(name) for name in table.columns if name not in own}
    used = {
        name: place
        for name, place in found.items()
        if place[0] != UNKNOWN and (wide or names.vocabulary.variables[place[0]].of_the_stay)
    }
    counts.add("unknown_column", len(found) - len(used))
    return used


def _rows(batch: Columns, layout: Layout, first: int, size: int) -> StayRows:
    """Return the rows of a batch; `first` is the number of rows before it."""
    nothing_R, no_R = np.full(size, np.nan), np.zeros(size, dtype=bool)
    admission = times(batch[ADMISSION]) if ADMISSION in batch else None
    found = None
    if layout.outcome is not None:
        found = outcomes_of(batch[layout.outcome], layout.data, layout.decimal_comma)
    outcome_s_R, zoned_R = nothing_R, no_R
    if layout.clock == OUTCOME_HOURS:
        hours_R = numbers(batch[OUTCOME_HOURS], layout.decimal_comma).values_N
        outcome_s_R = seconds_of(hours_R)
    elif layout.clock == OUTCOME_TIME:
        dated = times(batch[OUTCOME_TIME])
        outcome_s_R, zoned_R = dated.seconds_N, dated.zoned_N
    return StayRows(
        ids=_ids(batch, layout.table, first, size),
        sites=_texts(batch, SITE) if SITE in batch else [""] * size,
        has_sites=SITE in batch,
        admission_s_R=np.where(admission.day_only_N, np.nan, admission.seconds_N) if admission else nothing_R,
        zoned_R=admission.zoned_N if admission else no_R,
        label_R=found.label_N if found is not None else np.full(size, NO_LABEL, np.int16),
        has_outcome=found is not None,
        has_outcome_time=layout.clock is not None,
        outcome_s_R=outcome_s_R,
        outcome_zoned_R=zoned_R,
        outcome_is_dated=layout.clock == OUTCOME_TIME,
        unknown_outcome_R=found.unknown_N if found is not None else no_R,
        events=_values(batch, layout, first, size),
    )


def _ids(batch: Columns, table: TableFile, first: int, size: int) -> list[str]:
    """Return each row's patient; without a column of patients, the row itself is one."""
    if PATIENT not in batch:
        return [f"{table.path.name}:{number}" for number in range(first + 1, first + size + 1)]
    ids = _texts(batch, PATIENT)
    shortened = next((number for number, text in enumerate(ids, first + 1) if SHORTENED.fullmatch(text)), None)
    if shortened is not None:
        raise DataError(
            f"{table.path}: patient {shortened} of the table: {PATIENT} looks like a number that a spreadsheet has "
            "shortened; format the column as text, and export the table again from where it came"
        )
    return ids


def _texts(batch: Columns, name: str) -> list[str]:
    codes_N, texts = texts_of(batch[name])
    return [texts[code] or "" for code in codes_N.tolist()]


def _values(batch: Columns, layout: Layout, first: int, size: int) -> Events:
    parts = []
    for name, (variable, rank) in layout.variables.items():
        variable_N = np.full(size, variable, np.int16)
        found = values_of(batch[name], variable_N, required(layout.names, "names"), layout.decimal_comma)
        has_N = np.flatnonzero(found.wrong_N | ~np.isnan(found.value_N))
        parts.append(
            Events(
                patient_N=(has_N + first).astype(np.int32),
                second_N=np.zeros(len(has_N), np.int64),
                variable_N=variable_N[has_N],
                name_rank_N=np.full(len(has_N), rank, np.int16),
                value_N=found.value_N[has_N],
            )
        )
    return joined(parts)


def _joined(parts: list[StayRows]) -> StayRows:
    return StayRows(
        ids=[one for part in parts for one in part.ids],
        sites=[one for part in parts for one in part.sites],
        has_sites=parts[0].has_sites,
        admission_s_R=np.concatenate([part.admission_s_R for part in parts]),
        zoned_R=np.concatenate([part.zoned_R for part in parts]),
        label_R=np.concatenate([part.label_R for part in parts]),
        has_outcome=parts[0].has_outcome,
        has_outcome_time=parts[0].has_outcome_time,
        outcome_s_R=np.concatenate([part.outcome_s_R for part in parts]),
        outcome_zoned_R=np.concatenate([part.outcome_zoned_R for part in parts]),
        outcome_is_dated=parts[0].outcome_is_dated,
        unknown_outcome_R=np.concatenate([part.unknown_outcome_R for part in parts]),
        events=joined([part.events for part in parts]),
    )
