"""Cells of tables as numbers in the vocabulary's units: values, categories and units of a batch of rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from wardround_client.sources.records.events import UNKNOWN, Names
from wardround_client.sources.records.tables.cells import NUMBER, is_empty, numbers, texts_of


@dataclass(frozen=True, kw_only=True)
class Values:
    """The values of N cells."""

    value_N: np.ndarray  # float64; NaN: none
    wrong_N: np.ndarray  # bool: neither empty nor a number, or not a category of the variable


def values_of(column: pa.Array, variable_N: np.ndarray, names: Names, decimal_comma: bool) -> Values:
    """Return the values of cells that belong to the variables `variable_N` (indices; UNKNOWN is ignored)."""
    found = numbers(column, decimal_comma)
    value_N, wrong_N = found.values_N, found.wrong_N & (variable_N != UNKNOWN)
    for variable in np.unique(variable_N[variable_N != UNKNOWN]).tolist():
        if names.vocabulary.variables[variable].kind != "category":
            continue
        own_N = np.flatnonzero(variable_N == variable)
        codes_N, texts = texts_of(column.take(pa.array(own_N)))
        places = [None if text is None else names.category(variable, text) for text in texts]
        missing = {repr(float(value)): value for value in names.vocabulary.variables[variable].missing}
        places = [missing.get(_number_text(text), place) for text, place in zip(texts, places, strict=True)]
        empty = np.array([text is not None and is_empty(text) for text in texts], dtype=bool)
        value_N[own_N] = np.array([np.nan if one is None else one for one in places])[codes_N]
        wrong_N[own_N] = (np.array([one is None for one in places]) & ~empty)[codes_N]
    return Values(value_N=value_N, wrong_N=wrong_N)


def _number_text(text: str | None) -> str:
    return repr(float(text)) if text and NUMBER.fullmatch(text) else ""


def converted(
    value_N: np.ndarray, units: pa.Array, variable_N: np.ndarray, names: Names
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Convert values by a column of units.

    Returns:
        The values in the variables' own units, whether each was converted, and whether its unit is not known.
    """
    codes_N, texts = texts_of(units)
    value_N, changed_N, unknown_N = value_N.copy(), np.zeros(len(value_N), bool), np.zeros(len(value_N), bool)
    pairs, group_N = np.unique(np.stack([codes_N.astype(np.int64), variable_N]), axis=1, return_inverse=True)
    for index, (code, variable) in enumerate(pairs.T.tolist()):
        if variable == UNKNOWN:
            continue
        text = texts[code]
        known = None if text is None else names.conversion(variable, "" if is_empty(text) else text)
        rows_N = group_N.reshape(-1) == index
        if known is None:
            unknown_N |= rows_N
        elif known != (1.0, 0.0):
            value_N[rows_N] = value_N[rows_N] * known[0] + known[1]
            changed_N |= rows_N
    return value_N, changed_N, unknown_N
