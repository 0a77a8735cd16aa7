"""Tables in batches: headers, quotes, bytes that are no text, rows that do not fit, and cells as numbers and times."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from wardround.errors import DataError
from wardround_client.sources.records.tables import reader
from wardround_client.sources.records.tables.cells import numbers, texts_of, times


def read(path: Path, content: bytes) -> tuple[dict[str, list[str | None]], reader.RowCount]:
    """Every cell of a table as a text, and its counts."""
    path.write_bytes(content)
    table, count = reader.open_table(path), reader.RowCount()
    cells: dict[str, list[str | None]] = {name: [] for name in table.columns}
    for batch in reader.batches(table, table.columns, count):
        for name, column in batch.items():
            codes_N, texts = texts_of(column)
            cells[name] += [texts[code] for code in codes_N]
    return cells, count


@pytest.mark.parametrize(
    "content",
    [
        b"A,b\n1,x\n2,y\n",
        b"\xef\xbb\xbf\n\na;B\r\n1;x\r\n\r\n2;y",
        b'"a","b"\n"1","x"\n"2","y"\n',
        b"sep=|\na|b\n1|x\n2|y\n",
        b"a\tb\n1 \tx\n'2'\t\"y\"\n",
    ],
)
def test_what_spreadsheets_write_is_one_table(tmp_path: Path, content: bytes) -> None:
    cells, count = read(tmp_path / "t.csv", content)
    assert cells == {"a": ["1", "2"], "b": ["x", "y"]} and (count.rows, count.unreadable) == (2, 0)


def test_a_quoted_cell_may_hold_the_separator(tmp_path: Path) -> None:
    cells, count = read(tmp_path / "t.csv", b'"a","b"\n"1","x, y"\n"2","z"\n')
    assert cells["b"] == ["x, y", "z"] and count.unreadable == 0


def test_a_stray_quote_or_byte_costs_its_own_row_at_most(tmp_path: Path) -> None:
    lines = [b"%d,x" % number for number in range(50)]
    lines[10], lines[20], lines[30], lines[40] = b'"10,x', b"20", b"30,\xff", b"4\xff,0,x"
    cells, count = read(tmp_path / "t.csv", b"a,b\n" + b"\n".join(lines))
    assert (count.rows, count.unreadable) == (50, 2) and len(cells["a"]) == 48
    assert cells["a"][10] == "10" and cells["b"].count(None) == 1


def test_batches_are_small_whatever_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "BLOCK_BYTES", 4096)
    (tmp_path / "t.csv").write_bytes(b"a,b\n" + b"".join(b"%d,\xc3\xa9\n" % number for number in range(20_000)))
    table, count = reader.open_table(tmp_path / "t.csv"), reader.RowCount()
    sizes = [len(batch["a"]) for batch in reader.batches(table, ("a",), count)]
    assert sum(sizes) == count.rows == 20_000 and max(sizes) < 1000


def test_numbers_are_numbers_or_wrong() -> None:
    written = [
        "1",
        " 2 ",
        "+3",
        "1e2",
        "",
        "?",
        "NA",
        "inf",
        "nan",
        "0x10",
        "1_0",
        "<5",
        "4,5",
        "\u0661",
        "yes",
        "\ufffd",
    ]
    found = numbers(pa.array([text.encode() for text in written]), decimal_comma=True)
    expected = [1, 2, 3, 100, *[math.nan] * 8, 4.5, math.nan, 1, math.nan]
    assert np.array_equal(found.values_N, expected, equal_nan=True)
    assert [text for text, wrong in zip(written, found.wrong_N, strict=True) if wrong] == [
        "inf", "0x10", "1_0", "<5", "\u0661", "\ufffd",
    ]  # fmt: skip


def test_times_are_seconds_with_or_without_a_zone() -> None:
    written = ["1970-01-01T00:01", "1970-01-01 01:01:00+01:00", "1970-01-02", "", "noon", "1970-01-01T00:00:60"]
    found = times(pa.array([text.encode() for text in written]))
    assert np.array_equal(found.seconds_N, [60, 60, 86_400, math.nan, math.nan, math.nan], equal_nan=True)
    assert found.zoned_N.tolist() == [False, True, False, False, False, False]
    assert found.day_only_N.tolist() == [False, False, True, False, False, False]
    assert found.wrong_N.tolist() == [False, False, False, False, True, True]


@pytest.mark.parametrize(
    "column, seconds",
    [
        (pa.array([60_000], pa.int64()).cast(pa.timestamp("ms", "UTC")), 60),
        (pa.array([1], pa.int32()).cast(pa.date32()), 86_400),
        (pa.array([None], pa.timestamp("us")), math.nan),
        (pa.array([5.0]), math.nan),
    ],
)
def test_times_of_parquet_have_types(column: pa.Array, seconds: float) -> None:
    assert np.array_equal(times(column).seconds_N, [seconds], equal_nan=True)


@pytest.mark.parametrize("stored", [False, True])
def test_a_parquet_batch_is_bounded_by_its_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored: bool) -> None:
    monkeypatch.setattr(reader, "BATCH_BYTES", 2**20)
    cells = pa.DictionaryArray.from_arrays(pa.array([0] * 5000, pa.int32()), pa.array([b"x" * 1000]))
    pq.write_table(pa.table({"a": range(5000), "b": cells}), tmp_path / "t.parquet", store_schema=stored)
    table, count = reader.open_table(tmp_path / "t.parquet"), reader.RowCount()
    found = list(reader.batches(table, ("b", "a"), count))
    assert max(batch["b"].nbytes + batch["a"].nbytes for batch in found) <= 2**20
    assert [row for batch in found for row in batch["a"].to_pylist()] == list(range(count.rows)) and count.rows == 5000
    assert all(len(batch["a"]) > reader.STEP_ROWS for batch in found[:-1])


@pytest.mark.parametrize("cells", [["x" * 5000] * 300, ["x", *["x" * 5000] * 300]])
def test_a_parquet_file_of_long_cells_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cells: list[str]
) -> None:
    monkeypatch.setattr(reader, "BATCH_BYTES", 2**20)
    pq.write_table(pa.table({"a": cells}), tmp_path / "t.parquet")
    with pytest.raises(DataError, match=r"t\.parquet: a cell is too long"):
        list(reader.batches(reader.open_table(tmp_path / "t.parquet"), ("a",), reader.RowCount()))


@pytest.mark.parametrize("cells", [[["a"], ["b"]], [{"x": "CANARY"}] * 2])
def test_a_nested_column_is_refused_if_it_is_wanted(tmp_path: Path, cells: list) -> None:
    pq.write_table(pa.table({"a": cells, "b": [1, 2]}), tmp_path / "t.parquet")
    table = reader.open_table(tmp_path / "t.parquet")
    assert [batch["b"].to_pylist() for batch in reader.batches(table, ("b",), reader.RowCount())] == [[1, 2]]
    with pytest.raises(DataError, match=r"t\.parquet: column a holds lists or records") as error:
        list(reader.batches(table, ("b", "a"), reader.RowCount()))
    assert "CANARY" not in str(error.value)
