"""Tables in Parquet whose types or values cannot be converted, and links that lead nowhere: one line, and no cell."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from builders.records import icu_folder, prepared

from wardround.errors import DataError
from wardround_client.sources.records.tables import reader
from wardround_client.sources.records.tables.cells import times

EVENTS = [("a", 1, "hr", 80), ("b", 2, "hr", 90)]
IDS, NAMES, NUMBERS = pa.array(["a", "b"]), pa.array(["hr", "hr"]), pa.array([1.0, 2.0])
BYTES = pa.array([b"\xff\xfeCANARY"] * 2, pa.binary(8))  # as ids of 16 bytes are stored


@pytest.mark.parametrize(
    "name, columns",
    [
        ("patients", {"patient_id": BYTES, "died": [0, 1]}),
        ("events", {"patient_id": BYTES, "hours": NUMBERS, "variable": NAMES, "value": NUMBERS}),
        ("events", {"patient_id": IDS, "hours": NUMBERS, "variable": BYTES, "value": NUMBERS}),
    ],
)
def test_what_cannot_be_converted_is_one_line_without_the_cell(tmp_path: Path, name: str, columns: dict) -> None:
    folder = icu_folder(tmp_path / "data", EVENTS)
    (folder / f"{name}.csv").unlink()
    pq.write_table(pa.table(columns), folder / f"{name}.parquet")
    with pytest.raises(DataError, match=rf"{name}\.parquet: a column has a type or a value that") as error:
        prepared(folder, tmp_path / "out")
    assert "CANARY" not in str(error.value) and "\n" not in str(error.value)


def test_a_day_of_no_calendar_is_one_line_without_the_cell(tmp_path: Path) -> None:
    column, file = pa.array([2**60], pa.date64()), reader.TableFile(path=tmp_path / "t.parquet", columns=("time",))
    with (
        pytest.raises(DataError, match=r"t\.parquet: a column has a type or a value that") as error,
        reader.converting(file),
    ):
        times(column)
    assert str(2**60) not in str(error.value)


def test_a_link_to_itself_is_one_line(tmp_path: Path) -> None:
    folder = icu_folder(tmp_path / "data", EVENTS)
    (folder / "x.csv").symlink_to(folder / "x.csv")
    with pytest.raises(DataError, match="a link that leads back to itself"):
        prepared(folder, tmp_path / "out")
