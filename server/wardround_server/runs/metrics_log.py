"""metrics.jsonl: exactly one line for each finished round and site, appended durably.

Lines are written before the checkpoint of their round, so that a finished round always has its lines. A resume drops
the lines of the rounds after its checkpoint, because these rounds are repeated.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from wardround.errors import WardroundError
from wardround.storage import jsonl
from wardround.storage.disk_errors import cause
from wardround.storage.folders import make_folder


def append_lines(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Append one JSON line for each record, durably. Raises `WardroundError` if the disk is full."""
    try:
        make_folder(path.parent)
        jsonl.append_lines(path, records)
    except OSError as error:
        raise WardroundError(f"{path}: cannot be written: {cause(error)}; then start the same run again") from None


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return all records in order, or an empty list if there is no file.

    An incomplete last line, left by a kill, is skipped. Raises `WardroundError` for any other damaged line.
    """
    try:
        records = jsonl.read_lines(path)
        for number, record in enumerate(records, start=1):
            if not isinstance(record.get("round"), int):
                raise ValueError(f"line {number} is damaged")
    except ValueError as error:
        raise WardroundError(f"{path}: {error}; restore the file from a backup") from None
    return records


def trim_lines(path: Path, last_round: int) -> None:
    """Drop the lines of rounds after `last_round` and an incomplete last line, atomically and durably."""
    jsonl.trim_lines(path, (record for record in read_lines(path) if record["round"] <= last_round))
