"""metrics.jsonl: a line a round and site, appended durably, and never two lines for the same round and site.

Lines are written before the checkpoint of their round, so a finished round has its lines; a resume drops the lines of
rounds after its checkpoint, which will be written again.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from wardround.errors import WardroundError
from wardround.storage import jsonl
from wardround.storage.folders import make_folder


def append_lines(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Append one JSON line a record, and make them durable. Raises `WardroundError` when the disk is full."""
    try:
        make_folder(path.parent)
        jsonl.append_lines(path, records)
    except OSError as error:
        mend = "free some space and start the same run again"
        raise WardroundError(f"{path}: cannot be written: {error.strerror}; {mend}") from None


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All records, in order; none when there is no file. A last line cut short by a kill is left out.

    Raises `WardroundError` for a damaged line anywhere else.
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
    """Drop the lines of rounds after `last_round`, and a last line cut short; in one step, durably."""
    jsonl.trim_lines(path, (record for record in read_lines(path) if record["round"] <= last_round))
