"""Checks of single measurements: time, known unit mistakes, plausible range. What fails is counted by its reason.

Only the public vocabulary decides; nothing here is derived from the data.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from wardround.sources.records.vocabulary import Vocabulary
from wardround_client.sources.records.events import Events
from wardround_client.sources.records.quality.counts import Counts

LARGEST = 1e30  # of a variable without a range; a cohort holds float32
EARLIEST_S = -(10**9)  # thirty years before admission; what holds for the whole stay may be as old


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the checks compare with: the vocabulary's ranges and the patients' times.

    Names of arrays: V variables, P patients.
    """

    vocabulary: Vocabulary
    window_s: int  # of observation, since admission
    outcome_s_P: np.ndarray  # float64: measurements after it are not used; inf: none known

    @property
    def timeless_V(self) -> np.ndarray:
        """Whether a variable is one number for the whole stay."""
        return np.array([variable.of_the_stay for variable in self.vocabulary.variables])


def checked(events: Events, limits: Limits, counts: Counts) -> Events:
    """Return the measurements that can be used, with known mistakes repaired; count the others."""
    return _in_range(_repaired(_in_time(events, limits, counts), limits, counts), limits, counts)


def _in_time(events: Events, limits: Limits, counts: Counts) -> Events:
    """Check the times. What holds for the whole stay may be known before admission, but not from after the window."""
    timed_N = ~limits.timeless_V[events.variable_N]
    second_N = events.second_N
    end_N = timed_N & (second_N == limits.window_s)  # still counts as the last hour
    early_N = timed_N & (second_N < 0)
    after_N = ~early_N & (second_N > limits.outcome_s_P[events.patient_N])
    late_N = ~after_N & (second_N > limits.window_s)
    for code, rows_N in (
        ("before_admission", early_N),
        ("after_outcome", after_N),
        ("after_window", late_N),
        ("at_end_of_window", end_N & ~after_N),
    ):
        _count(counts, code, events, rows_N)
    kept = events.where(~(early_N | after_N | late_N))
    return replace(kept, second_N=np.clip(kept.second_N, EARLIEST_S, limits.window_s - 1))


def _repaired(events: Events, limits: Limits, counts: Counts) -> Events:
    value_N = events.value_N.copy()
    for index, variable in enumerate(limits.vocabulary.variables):
        for mistake in variable.mistakes:
            rows_N = (events.variable_N == index) & (events.value_N >= mistake.low) & (events.value_N <= mistake.high)
            value_N[rows_N] = events.value_N[rows_N] * mistake.factor + mistake.offset
            _count(counts, mistake.reason, events, rows_N)
    return replace(events, value_N=value_N)


def _in_range(events: Events, limits: Limits, counts: Counts) -> Events:
    variables = limits.vocabulary.variables
    event_N = np.array([variable.kind == "event" for variable in variables])[events.variable_N]
    value_N, variable_N = np.where(event_N, events.value_N > 0, events.value_N), events.variable_N
    lowest_V = np.array([max(variable.lowest, -LARGEST) for variable in variables])
    highest_V = np.array([min(variable.highest, LARGEST) for variable in variables])
    code_N = np.zeros(len(events), dtype=bool)
    for index, variable in enumerate(variables):
        if variable.missing:
            code_N |= (variable_N == index) & np.isin(value_N, variable.missing)
    outside_N = code_N | ~((value_N >= lowest_V[variable_N]) & (value_N <= highest_V[variable_N]))
    _count(counts, "missing_code", events, code_N)
    _count(counts, "impossible", events, outside_N & ~code_N)
    not_happened_N = event_N & (value_N == 0)
    return replace(events, value_N=value_N).where(~(outside_N | not_happened_N))


def _count(counts: Counts, code: str, events: Events, rows_N: np.ndarray) -> None:
    counts.add_rows(code, events.patient_N[rows_N], events.variable_N[rows_N])
