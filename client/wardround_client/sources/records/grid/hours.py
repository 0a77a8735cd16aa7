"""From the measurements of some patients to the hours of a cohort's rows.

The result does not depend on the order in which the measurements were read. A cell is one hour of one variable of one
patient; a row of the cohort has `hours * variables` cells, most of them empty.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from wardround.sources.records.vocabulary import Vocabulary
from wardround_client.sources.records.events import Events
from wardround_client.sources.records.quality.counts import Counts
from wardround_client.sources.records.stays import HOUR_S

CELL = np.dtype([("patient", "<i4"), ("place", "<i4"), ("value", "<f4")])  # place = hour * variables + variable


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The shape and the rules of a row."""

    vocabulary: Vocabulary
    hours: int

    @property
    def row_shape(self) -> tuple[int, int]:
        """Hours and variables."""
        return self.hours, len(self.vocabulary.variables)

    @property
    def kinds_V(self) -> np.ndarray:
        """The kind of each variable, as a text."""
        return np.array([variable.kind for variable in self.vocabulary.variables])


def cells_of(events: Events, grid: Grid, counts: Counts) -> np.ndarray:
    """Return the filled cells of these measurements, sorted by patient and place.

    Exact repetitions are used once, values that contradict each other not at all; both are counted. Within an hour the
    strongest name of a variable is used alone; its values are averaged ("series") or added up ("sum"). A value for the
    whole stay is the first of its strongest name, and stands in hour 0.
    """
    order_N = np.lexsort((events.value_N, events.second_N, events.name_rank_N, events.variable_N, events.patient_N))
    events = _without_contradictions(_without_repetitions(events.where(order_N), counts), grid, counts)
    variables = len(grid.vocabulary.variables)
    of_stay_V = np.array([variable.of_the_stay for variable in grid.vocabulary.variables])
    hour_N = np.where(of_stay_V[events.variable_N], 0, events.second_N // HOUR_S)
    place_N = hour_N * variables + events.variable_N
    key_N = events.patient_N.astype(np.int64) * (grid.hours * variables) + place_N
    order_N = np.lexsort((events.value_N, events.second_N, events.name_rank_N, key_N))
    events, key_N = events.where(order_N), key_N[order_N]
    keys_C, first_C, group_N = np.unique(key_N, return_index=True, return_inverse=True)
    preferred_N = events.name_rank_N == events.name_rank_N[first_C][group_N]
    sums_C = np.bincount(group_N[preferred_N], events.value_N[preferred_N], minlength=len(keys_C))
    counts_C = np.bincount(group_N[preferred_N], minlength=len(keys_C))
    variable_C = events.variable_N[first_C]
    kind_C = grid.kinds_V[variable_C]
    highest_C = np.array([variable.highest for variable in grid.vocabulary.variables])[variable_C]
    cells = np.empty(len(keys_C), CELL)
    cells["patient"], cells["place"] = np.divmod(keys_C, grid.hours * variables)
    mean_C = sums_C / np.maximum(counts_C, 1)
    total_C = np.where(kind_C == "sum", np.minimum(sums_C, highest_C), mean_C)
    cells["value"] = np.where(of_stay_V[variable_C], events.value_N[first_C], np.where(kind_C == "event", 1.0, total_C))
    return cells


def rows_of(cells: np.ndarray, first: int, end: int, kept_P: np.ndarray, grid: Grid) -> Iterator[np.ndarray]:
    """Yield the rows (hours, variables) float32 of the patients from `first` to before `end` that are kept."""
    starts = np.searchsorted(cells["patient"], np.arange(first, end + 1))
    for patient in range(first, end):
        if not kept_P[patient]:
            continue
        own = cells[starts[patient - first] : starts[patient - first + 1]]
        row = np.full(grid.hours * len(grid.vocabulary.variables), np.nan, np.float32)
        row[own["place"]] = own["value"]
        yield row.reshape(grid.row_shape)


def _without_repetitions(events: Events, counts: Counts) -> Events:
    """Remove exact repetitions, and count them and what differs although patient, variable and time are the same."""
    if not len(events):
        return events
    same_time_N = np.ones(len(events), dtype=bool)
    for column_N in (events.patient_N, events.variable_N, events.name_rank_N, events.second_N):
        same_time_N[1:] &= column_N[1:] == column_N[:-1]
    same_time_N[0] = False
    same_value_N = np.r_[False, events.value_N[1:] == events.value_N[:-1]] & same_time_N
    for code, rows_N in (("duplicate", same_value_N), ("two_values", same_time_N & ~same_value_N)):
        counts.add_rows(code, events.patient_N[rows_N], events.variable_N[rows_N])
    return events.where(~same_value_N)


def _without_contradictions(events: Events, grid: Grid, counts: Counts) -> Events:
    """Remove pairs measured at the same time of which the lower one is above the upper one, and count them."""
    wrong_N = np.zeros(len(events), dtype=bool)
    own_N = events.patient_N.astype(np.int64) - (events.patient_N.min() if len(events) else 0)
    key_N = (own_N << 32 | events.second_N) * 256 + events.name_rank_N
    for order in grid.vocabulary.orders:
        lower, upper = grid.vocabulary.index(order.lower), grid.vocabulary.index(order.upper)
        lower_N, upper_N = (np.flatnonzero(events.variable_N == index) for index in (lower, upper))
        _, low_M, high_M = np.intersect1d(key_N[lower_N], key_N[upper_N], return_indices=True)
        crossed_M = events.value_N[lower_N[low_M]] > events.value_N[upper_N[high_M]]
        wrong_N[lower_N[low_M[crossed_M]]] = True
        wrong_N[upper_N[high_M[crossed_M]]] = True
    counts.add_rows("contradiction", events.patient_N[wrong_N], events.variable_N[wrong_N])
    return events.where(~wrong_N)
