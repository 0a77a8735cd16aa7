"""JSON lines: a kill loses only the end of the last line, and a damaged line is never skipped."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from wardround.storage.json_numbers import json_number, json_numbers, number_of_json
from wardround.storage.jsonl import append_lines, read_lines, trim_lines

RECORDS = [{"round": 1, "text": "ä"}, {"round": 2, "rows": [0.1, None]}]


def test_what_was_appended_is_read_and_the_file_is_its_owners(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    assert read_lines(path) == []
    append_lines(path, RECORDS[:1])
    append_lines(path, RECORDS[1:])
    assert read_lines(path) == RECORDS and path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_last_line_cut_short_anywhere_is_left_out_and_removed(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "log.jsonl"
    append_lines(path, RECORDS)
    path.write_bytes(path.read_bytes()[:-cut])
    assert read_lines(path) == RECORDS[:1]
    trim_lines(path, read_lines(path))
    append_lines(path, RECORDS[1:])
    assert read_lines(path) == RECORDS


@pytest.mark.parametrize("line", [b"{", b"[]", b"1", b"\xff\xff", b"", b"[" * 100_000])
def test_a_damaged_line_before_the_last_is_named(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "log.jsonl"
    append_lines(path, RECORDS[:1])
    path.write_bytes(path.read_bytes() + line + b"\n")
    append_lines(path, RECORDS[1:])
    with pytest.raises(ValueError, match="^line 2 is damaged$"):
        read_lines(path)


def test_a_file_that_is_as_it_should_be_is_not_written_again(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    append_lines(path, RECORDS)
    before = path.stat().st_ino
    trim_lines(path, RECORDS)
    assert path.stat().st_ino == before
    trim_lines(tmp_path / "none.jsonl", [])
    assert not (tmp_path / "none.jsonl").exists()


def test_infinity_comes_back_and_anything_else_stays() -> None:
    assert json_number(math.inf) == "inf" and number_of_json("inf") == math.inf
    for value in (0.1, 8, True, None, "name"):
        assert number_of_json(value) is value
    content = {"a": math.inf, "b": [1.5, {"c": (math.inf, "inf")}], "n": 3}
    assert json_numbers(content) == {"a": "inf", "b": [1.5, {"c": ["inf", "inf"]}], "n": 3}
