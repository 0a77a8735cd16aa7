"""The patients of a site: when each was admitted, their outcome, and what is known of them once for the whole stay.

Names of arrays: P patients, R rows that name a patient each, N measurements.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace

import numpy as np

from wardround_client.sources.records.events import Events
from wardround_client.sources.records.quality.counts import Counts

NO_LABEL = -1
HOUR_S = 3600
MOST_HOURS = 1e6  # a hundred years


@dataclass(frozen=True, kw_only=True)
class StayRows:
    """What was read of stays, one row each: rows of a table, or encounters."""

    ids: list[str] = field(repr=False)  # "" where there is none
    sites: list[str]  # "" where there is none
    has_sites: bool
    admission_s_R: np.ndarray  # float64, NaN: unknown
    zoned_R: np.ndarray  # bool: the time of admission names its zone
    label_R: np.ndarray  # int16, index into data.labels; NO_LABEL
    has_outcome: bool
    has_outcome_time: bool
    outcome_s_R: np.ndarray  # since admission, or since 1970 if `outcome_is_dated`; NaN: unknown
    outcome_zoned_R: np.ndarray
    outcome_is_dated: bool
    unknown_outcome_R: np.ndarray  # bool
    events: Events  # `patient_N` is the row; a NaN stands for a cell that is not a number


@dataclass(frozen=True, kw_only=True)
class Stays:
    """One stay for each patient, in the order of the files."""

    ids: tuple[str, ...] = field(repr=False)
    admission_s_P: np.ndarray  # float64, as `Times.seconds_N`; NaN: unknown
    zoned_P: np.ndarray  # bool: the time of admission names its zone
    label_P: np.ndarray  # int16, index into data.labels; NO_LABEL
    outcome_s_P: np.ndarray  # float64, when the outcome happened, since admission; NaN: unknown
    events: Events  # numbers for the whole stay, from the table of patients; at second 0

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, kw_only=True)
class TimesInStay:
    """When measurements were made, in seconds since admission (float64, NaN: unknown), and why some are unknown.

    `unknown` maps the code of a reason to the rows, bool (N,); no row has two reasons.
    """

    seconds_N: np.ndarray
    unknown: dict[str, np.ndarray]


def times_in_stay(
    stays: Stays, patient_N: np.ndarray, seconds_N: np.ndarray, zoned_N: np.ndarray, day_only_N: np.ndarray
) -> TimesInStay:
    """Return how long after admission each time is.

    Args:
        stays: The patients.
        patient_N: Index of the patient whose time it is.
        seconds_N: The times, as `Times.seconds_N`.
        zoned_N: Whether each time names its zone. If only one of the time and the admission does, they cannot be
            compared.
        day_only_N: Whether each time is a day without an hour, which is not enough.
    """
    admission_N = stays.admission_s_P[patient_N]
    unknown_N = np.isnan(admission_N)
    mixed_N = ~unknown_N & ~np.isnan(seconds_N) & (stays.zoned_P[patient_N] != zoned_N)
    since_N = seconds_N - admission_N
    since_N = np.where(np.abs(since_N) <= MOST_HOURS * HOUR_S, since_N, np.nan)
    usable_N = ~unknown_N & ~day_only_N & ~mixed_N
    unknown = {
        "no_admission": unknown_N,
        "day_only": day_only_N & ~unknown_N,
        "mixed_zones": mixed_N & ~day_only_N,
        "no_time": usable_N & np.isnan(since_N),
    }
    return TimesInStay(seconds_N=np.where(usable_N, since_N, np.nan), unknown=unknown)


def seconds_of(hours_N: np.ndarray) -> np.ndarray:
    """Return hours since admission in seconds, NaN for more than `MOST_HOURS`, which are a mistake."""
    return np.where(np.abs(hours_N) <= MOST_HOURS, hours_N, np.nan) * HOUR_S


def stays_from(
    rows: StayRows,
    ends: StayRows,
    *,
    chosen: Collection[str] | None,
    others: Collection[str] | None,
    counts: Counts,
) -> tuple[Stays, list[str] | None]:
    """Return one stay for each patient, and each patient's site if the rows name sites.

    Args:
        rows: The stays. A patient's first one is taken.
        ends: The rows with the outcomes: `rows` itself, or another table.
        chosen: The ids of the patients that are read; None: all.
        others: The ids of other sites' patients in the same files; None: do not count who is in neither.
        counts: Counts what cannot be used.
    """
    kept_R = _first_stays(rows, chosen, counts)
    index_R = np.full(len(rows.ids), -1)
    index_R[kept_R] = np.arange(len(kept_R))
    events = rows.events.where(index_R[rows.events.patient_N] >= 0)
    events = replace(events, patient_N=index_R[events.patient_N].astype(np.int32))
    wrong_N = np.isnan(events.value_N)
    counts.add_rows("not_a_number", events.patient_N[wrong_N], events.variable_N[wrong_N])
    stays = Stays(
        ids=tuple(rows.ids[row] for row in kept_R),
        admission_s_P=rows.admission_s_R[kept_R],
        zoned_P=rows.zoned_R[kept_R],
        label_P=rows.label_R[kept_R],
        outcome_s_P=_since_admission(rows, kept_R, rows, kept_R),
        events=events.where(~wrong_N),
    )
    sites = [rows.sites[row] for row in kept_R] if rows.has_sites else None
    if ends is rows:
        counts.add_rows("unknown_outcome", np.flatnonzero(rows.unknown_outcome_R[kept_R]))
        return stays, sites
    return _with_outcomes(stays, rows, kept_R, ends, others, counts), sites


def _first_stays(rows: StayRows, chosen: Collection[str] | None, counts: Counts) -> np.ndarray:
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


def _since_admission(ends: StayRows, end_P: np.ndarray, rows: StayRows, row_P: np.ndarray) -> np.ndarray:
    """Return when the outcome happened, in seconds since admission; NaN where either time is unknown."""
    seconds_P = ends.outcome_s_R[end_P]
    if not ends.outcome_is_dated:
        return seconds_P
    comparable_P = ends.outcome_zoned_R[end_P] == rows.zoned_R[row_P]
    return np.where(comparable_P, seconds_P - rows.admission_s_R[row_P], np.nan)


def _with_outcomes(
    stays: Stays,
    rows: StayRows,
    kept_R: np.ndarray,
    ends: StayRows,
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
