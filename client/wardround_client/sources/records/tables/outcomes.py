"""What a study counts as the outcome, from a column of a table."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from wardround.sources.records.study import RecordsData
from wardround.storage.table import same_text
from wardround_client.sources.records.stays import NO_LABEL
from wardround_client.sources.records.tables.cells import is_empty, numbers, texts_of

OUTCOME_HOURS, OUTCOME_TIME = "outcome_hours", "outcome_time"


@dataclass(frozen=True, kw_only=True)
class Outcomes:
    """The outcomes of N rows."""

    label_N: np.ndarray  # int16, index into data.labels; NO_LABEL
    unknown_N: np.ndarray  # bool: the cell is neither empty, nor a number, nor a label of the study


def outcomes_of(column: pa.Array, data: RecordsData, decimal_comma: bool = False) -> Outcomes:
    """Return the labels of a column of numbers (`data.outcome_above`) or of the labels' names."""
    found = numbers(column, decimal_comma)
    label_N = np.where(found.values_N > data.outcome_above, 1, 0).astype(np.int16)
    label_N[np.isnan(found.values_N)] = NO_LABEL
    unknown_N = found.wrong_N.copy()
    if not unknown_N.any():
        return Outcomes(label_N=label_N, unknown_N=unknown_N)
    codes_N, texts = texts_of(column)
    place = {same_text(name): index for index, name in enumerate(data.labels)}
    named = np.array([NO_LABEL if text is None else place.get(same_text(text), NO_LABEL) for text in texts], np.int16)
    empty = np.array([text is not None and is_empty(text) for text in texts])
    label_N[unknown_N] = named[codes_N][unknown_N]
    return Outcomes(label_N=label_N, unknown_N=unknown_N & (label_N == NO_LABEL) & ~empty[codes_N])


def with_horizon(
    label_P: np.ndarray, outcome_s_P: np.ndarray, data: RecordsData
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Apply the study's horizon to the outcomes.

    Args:
        label_P: The label of each patient, whenever the outcome happened.
        outcome_s_P: When it happened, in seconds since admission; NaN: unknown.
        data: The study's data section.

    Returns:
        The labels within the horizon, whether the outcome happened before the end of the window, and whether a time is
        needed and missing. Without a horizon the labels stay as they are.
    """
    happened_P = label_P == 1
    window_s = data.window_hours * 3600
    within_P = happened_P & (outcome_s_P <= window_s)
    if data.horizon_hours is None:
        return label_P, within_P, np.zeros(len(label_P), dtype=bool)
    missing_P = happened_P & np.isnan(outcome_s_P)
    late_P = happened_P & (outcome_s_P > window_s + data.horizon_hours * 3600)
    label_P = np.where(missing_P, NO_LABEL, np.where(late_P, 0, label_P)).astype(np.int16)
    return label_P, within_P, missing_P
