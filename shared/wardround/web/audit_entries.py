"""The verified entries of an audit log for pages and metrics that are asked for often.

A log is read again only when it or its head changed, by size and time. The page of the log itself, and an approval,
read all of it each time.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from wardround.records.audit_log import AUDIT_FILE, verified

Entries = tuple[dict[str, Any], ...]


def entries_of(folder: Path) -> Entries:
    """Return all entries of a folder's log; none if there is no log. Raises `AuditError` if the log is damaged."""
    path = folder / AUDIT_FILE
    if not path.exists():
        return ()
    return _read(path, _state(path), _state(path.with_suffix(".head")))


@functools.lru_cache(maxsize=2)
def _read(path: Path, log: tuple[int, int], head: tuple[int, int]) -> Entries:
    return verified(path).entries


def _state(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except FileNotFoundError:
        return (0, 0)
    return (found.st_size, found.st_mtime_ns)
