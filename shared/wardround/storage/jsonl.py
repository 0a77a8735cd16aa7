"""JSON lines: one object a line, only ever added to, so that a kill costs at most the end of the last line.

A line counts when its line end is there: what follows the last one was cut short by a kill, and its writer repeats it.
The audit log and the programs' logs are JSON lines too, with readers of their own: the audit log's lines are a chain of
hashes (`records/audit_log.py`), and a log is read while it grows and is rotated (`operations/log_reader.py`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from wardround.storage.atomic import OWNER_ONLY, write_file


def append_lines(path: Path, records: Iterable[Mapping[str, Any]], mode: int | None = OWNER_ONLY) -> None:
    """Add one line a record, durable on return. Raises `OSError`, and `ValueError` for NaN or infinity.

    Args:
        path: The file, made where it is missing. Its folder must exist.
        records: What to add. `read_lines` must have found no cut line; call `trim_lines` first.
        mode: The file's mode, whatever the umask. None takes what the umask gives.
    """
    text = as_text(records)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666 if mode is None else mode), "ab") as file:
        if mode is not None:
            os.fchmod(file.fileno(), mode)
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All records in order; none where there is no file. A last line that was cut short is left out.

    Raises `ValueError` that names the first damaged line.
    """
    if not path.exists():
        return []
    records = []
    for number, line in enumerate(_ended_lines(path), start=1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict):
            raise ValueError(f"line {number} is damaged")
        records.append(record)
    return records


def trim_lines(path: Path, kept: Iterable[Mapping[str, Any]], mode: int | None = OWNER_ONLY) -> None:
    """Replace the file by the records `kept` where it holds anything else, such as a last line cut short.

    In one step, durable on return. Raises `OSError`.
    """
    content = as_text(kept).encode()
    if path.exists() and content != path.read_bytes():
        write_file(path, content, mode)


def as_text(records: Iterable[Mapping[str, Any]]) -> str:
    """Records as lines."""
    return "".join(json.dumps(record, allow_nan=False) + "\n" for record in records)


def _ended_lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
