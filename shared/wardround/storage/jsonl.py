"""JSON lines: append-only files with one object per line, of which a kill can damage at most the last line.

A line is complete if it has its line end; text after the last line end was cut short by a kill, and its writer repeats
it. The audit log and the programs' logs are JSON lines too, but have their own readers: the audit log's lines form a
chain of hashes (`records/audit_log.py`), and a log is read while it grows and is rotated (`operations/log_reader.py`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from wardround.storage.atomic import OWNER_ONLY, write_file


def append_lines(path: Path, records: Iterable[Mapping[str, Any]], mode: int | None = OWNER_ONLY) -> None:
    """Append one line per record; durable on return.

    Args:
        path: The file, created if it is missing. Its folder must exist.
        records: The records to append. The file must not end with an incomplete line; call `trim_lines` first.
        mode: The file's mode, regardless of the umask. None uses the umask.

    Raises:
        OSError: The file cannot be written.
        ValueError: A record contains NaN or infinity.
    """
    text = as_text(records)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666 if mode is None else mode), "ab") as file:
        if mode is not None:
            os.fchmod(file.fileno(), mode)
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return all records in order, or an empty list if there is no file. An incomplete last line is skipped.

    Raises a `ValueError` that names the first damaged line.
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
    """Replace the file by the records `kept` if its content differs, for example by an incomplete last line.

    The replacement is atomic, and durable on return. Raises `OSError` if the file cannot be written.
    """
    content = as_text(kept).encode()
    if path.exists() and content != path.read_bytes():
        write_file(path, content, mode)


def as_text(records: Iterable[Mapping[str, Any]]) -> str:
    """Return records as JSON lines."""
    return "".join(json.dumps(record, allow_nan=False) + "\n" for record in records)


def _ended_lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
