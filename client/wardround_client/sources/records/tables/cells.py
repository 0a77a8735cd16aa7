"""Turns a column of cells into numbers, times or texts, for a whole batch at once.

Columns of clean cells are converted by pyarrow. Where it fails, each different cell is looked at once. A cell that
cannot be right becomes a NaN and is marked as `wrong`; an empty cell becomes a NaN and is not.
"""

from __future__ import annotations

import datetime as dt
import math
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pa_compute

EMPTY = frozenset({"", "?", ".", "-", "na", "n/a", "nan", "null", "none", "nil", "missing", "unknown"})
WORDS = {"true": 1.0, "yes": 1.0, "false": 0.0, "no": 0.0}
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
DECIMAL_COMMA = re.compile(r"[+-]?\d*,\d+", re.ASCII)
NO_TEXT = "\ufffd"  # stands for bytes that are not UTF-8
DAY = re.compile(r"\d{4}-\d{2}-\d{2}|\d{8}", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """The numbers of N cells."""

    values_N: np.ndarray  # float64, NaN where there is none
    wrong_N: np.ndarray  # bool: neither empty nor a number


@dataclass(frozen=True, kw_only=True)
class Times:
    """The times of N cells."""

    seconds_N: np.ndarray  # float64, since 1970 in UTC, or in the clock of the place if there is no zone; NaN: none
    zoned_N: np.ndarray  # bool: the cell names its zone
    day_only_N: np.ndarray  # bool: a day without a time of day
    wrong_N: np.ndarray  # bool: neither empty nor a time


def numbers(column: pa.Array, decimal_comma: bool = False) -> Numbers:
    """Return the numbers of a column.

    Args:
        column: Cells as bytes (CSV), or of any type of Parquet.
        decimal_comma: Whether 36,5 is a number, as in tables that are separated by another character.
    """
    column = _plain(column)
    kind = column.type
    if pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        values_N = column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    elif pa.types.is_decimal(kind):
        values_N = column.cast(pa.float64()).to_numpy(zero_copy_only=False)
    elif pa.types.is_binary(kind):
        try:
            values_N = column.cast(pa.string()).cast(pa.float64()).to_numpy(zero_copy_only=False)
        except pa.ArrowInvalid:  # at least one is no number, or not UTF-8
            values_N, wrong_N = _each(column, lambda text: _number(text, decimal_comma))
            return Numbers(values_N=values_N, wrong_N=wrong_N)
    else:
        return Numbers(values_N=np.full(len(column), np.nan), wrong_N=np.ones(len(column), dtype=bool))
    values_N = np.array(values_N, dtype=np.float64)  # a copy that may be written
    wrong_N = np.isinf(values_N)
    values_N[wrong_N] = np.nan
    return Numbers(values_N=values_N, wrong_N=wrong_N)


def times(column: pa.Array) -> Times:
    """Return the times of a column: ISO 8601, with or without a zone, or a type of Parquet."""
    column = _plain(column)
    kind = column.type
    none_N = np.zeros(len(column), dtype=bool)
    if pa.types.is_timestamp(kind):
        return Times(
            seconds_N=_seconds(column),
            zoned_N=np.full(len(column), kind.tz is not None),
            day_only_N=none_N,
            wrong_N=none_N,
        )
    if pa.types.is_date(kind):
        seconds_N = _seconds(column.cast(pa.timestamp("s")))
        return Times(seconds_N=seconds_N, zoned_N=none_N, day_only_N=~np.isnan(seconds_N), wrong_N=none_N)
    if not pa.types.is_binary(kind):
        nothing_N = np.full(len(column), np.nan)
        return Times(seconds_N=nothing_N, zoned_N=none_N, day_only_N=none_N, wrong_N=~none_N)
    fast = _fast_times(column)
    if fast is not None:
        return Times(seconds_N=fast[0], zoned_N=np.full(len(column), fast[1]), day_only_N=none_N, wrong_N=none_N)
    codes_N, texts = texts_of(column)
    found = [(math.nan, False, False, True) if text is None else time_of(text) for text in texts]
    table = np.array(found, dtype=np.float64).reshape(-1, 4)[codes_N]
    return Times(seconds_N=table[:, 0], zoned_N=table[:, 1] > 0, day_only_N=table[:, 2] > 0, wrong_N=table[:, 3] > 0)


def texts_of(column: pa.Array) -> tuple[np.ndarray, list[str | None]]:
    """Return the different texts of a column and each cell's index among them; None for one that is not UTF-8.

    Texts are composed (NFC) and without outer spaces. A number that Parquet stores as 132539.0 is "132539".
    """
    column = _plain(column)
    kind = column.type
    if pa.types.is_floating(kind):
        whole = np.array(column.to_numpy(zero_copy_only=False), dtype=np.float64)
        texts = ["" if not math.isfinite(one) else str(int(one)) if one == int(one) else repr(one) for one in whole]
        column = pa.array([text.encode() for text in texts], pa.binary())
    elif not pa.types.is_binary(kind):
        column = column.cast(pa.string()).cast(pa.binary()).fill_null(b"")
    encoded = column.dictionary_encode()
    return encoded.indices.to_numpy(zero_copy_only=False), [_decoded(one) for one in encoded.dictionary.to_pylist()]


def is_empty(text: str) -> bool:
    """Whether a cell means that there is no value."""
    return text.casefold() in EMPTY


def _plain(column: pa.Array) -> pa.Array:
    """Return texts of any type as bytes without nulls, and other columns as they are."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        column, kind = column.dictionary_decode(), kind.value_type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_large_binary(kind):
        column = column.cast(pa.binary())
    return column.fill_null(b"") if pa.types.is_binary(column.type) else column


def _decoded(cell: bytes) -> str | None:
    text = cell.decode("utf-8", "replace")
    if NO_TEXT in text:
        return None
    return unicodedata.normalize("NFC", text).strip("\ufeff \t\r\n\u00a0\0\"'")


def _each(column: pa.Array, parse: Callable[[str], float | None]) -> tuple[np.ndarray, np.ndarray]:
    codes_N, texts = texts_of(column)
    parsed = [None if text is None else math.nan if is_empty(text) else parse(text) for text in texts]
    values = np.array([math.nan if one is None else one for one in parsed], dtype=np.float64)
    wrong = np.array([one is None for one in parsed], dtype=bool)
    return values[codes_N], wrong[codes_N]


def _number(text: str, decimal_comma: bool) -> float | None:
    if decimal_comma and DECIMAL_COMMA.fullmatch(text):
        text = text.replace(",", ".")
    if text.casefold() in WORDS:
        return WORDS[text.casefold()]
    if len(text) > 64 or not NUMBER.fullmatch(text):
        return None
    value = float(text)
    return value if math.isfinite(value) else None


def time_of(text: str) -> tuple[float, bool, bool, bool]:
    """Return seconds, whether a zone is named, whether only a day is given, and whether the cell is wrong."""
    if is_empty(text):
        return math.nan, False, False, False
    try:
        time = dt.datetime.fromisoformat(text)
        zoned = time.tzinfo is not None
        seconds = (time if zoned else time.replace(tzinfo=dt.UTC)).timestamp()
    except (ValueError, OverflowError):
        return math.nan, False, False, True
    return seconds, zoned, bool(DAY.fullmatch(text)), False


def _fast_times(column: pa.Array) -> tuple[np.ndarray, bool] | None:
    """Convert a column of times that all have, or all lack, a zone; None if it is not one."""
    try:
        texts = column.cast(pa.string())
        shortest = pa_compute.min(pa_compute.binary_length(texts)).as_py()
    except pa.ArrowInvalid:
        return None
    if shortest is None or shortest < len("2020-01-02T03:04"):
        return None
    for zone in (None, "UTC"):
        try:
            return _seconds(texts.cast(pa.timestamp("us", zone))), zone is not None
        except pa.ArrowInvalid:
            continue
    return None


def _seconds(column: pa.Array) -> np.ndarray:
    ticks = column.cast(pa.timestamp("us", column.type.tz), safe=False).cast(pa.int64())
    return np.array(ticks.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False), dtype=np.float64) / 1e6
