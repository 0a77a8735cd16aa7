"""metrics.jsonl: a line a round and site, appended durably, and never two lines for the same round and site.

Lines are written before the checkpoint of their round, so a finished round has its lines; a resume drops the lines of
rounds after its checkpoint, which will be written again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from wardround.errors import WardroundError
from wardround.storage.atomic import fsync, owner_only
from wardround.storage.folders import make_folder


def append_lines(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Append one JSON line a record, and make them durable. Raises `WardroundError` when the disk is full."""
    text = _as_text(records)
    try:
        make_folder(path.parent)
        with open(path, "a", encoding="utf-8", opener=owner_only) as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        mend = "free some space and start the same run again"
        raise WardroundError(f"{path}: cannot be written: {error.strerror}; {mend}") from None


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All records, in order; none when there is no file. A last line cut short by a kill is left out.

    Raises `WardroundError` for a damaged line anywhere else.
    """
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    records = []
    for number, line in enumerate(lines[:-1], start=1):  # what follows the last newline is cut short, or empty
        try:
            record = json.loads(line)
            if not isinstance(record["round"], int):
                raise TypeError
        except (ValueError, KeyError, TypeError):
            raise WardroundError(f"{path}: line {number} is damaged; restore the file from a backup") from None
        records.append(record)
    return records


def trim_lines(path: Path, last_round: int) -> None:
    """Drop the lines of rounds after `last_round`, and a last line cut short; in one step, durably."""
    if not path.exists():
        return
    kept = _as_text(record for record in read_lines(path) if record["round"] <= last_round)
    if kept == path.read_text(encoding="utf-8", errors="replace"):
        return
    partial = path.with_name(f".{path.name}.partial")
    with open(partial, "w", encoding="utf-8", opener=owner_only) as file:
        file.write(kept)
    fsync(partial)
    os.replace(partial, path)
    fsync(path.parent)


def _as_text(records: Iterable[dict[str, Any]]) -> str:
    return "".join(json.dumps(record, allow_nan=False) + "\n" for record in records)
