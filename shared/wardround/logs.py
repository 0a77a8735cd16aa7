"""Logs as JSON lines: when, how bad, from where, what; and the site, run and round where they are known. Rotated, 0600.

    {"run":"…","round":3,"at":"2026-11-24T21:50:03.120Z","level":"warning","logger":"wardround_client.app","text":"…"}

At a server no text comes from a site's data, because none reaches it: the wire has codes only (`wire.py`). At a site
the log is the hospital's own, holds whole tracebacks, and never leaves.
"""

from __future__ import annotations

import contextvars
import json
import logging
import logging.handlers
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOG_BYTES, LOGS_KEPT = 10_000_000, 10
_place: contextvars.ContextVar[dict[str, str | int]] = contextvars.ContextVar("place", default={})  # noqa: B039


@contextmanager
def at(**place: str | int) -> Iterator[None]:
    """Everything that is logged inside the block, by this thread or task, names this site, run or round."""
    token = _place.set({**_place.get(), **place})
    try:
        yield
    finally:
        _place.reset(token)


class JsonLines(logging.Formatter):
    """One JSON object a record; a traceback is in it as text, so a line stays a line."""

    def format(self, record: logging.LogRecord) -> str:
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        content: dict[str, str | int] = {
            **_place.get(),
            "at": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "text": record.getMessage(),
        }
        if record.exc_info:
            content["traceback"] = self.formatException(record.exc_info)
        return json.dumps(content, ensure_ascii=False)


class OwnersRotatingFile(logging.handlers.RotatingFileHandler):
    """A rotated file that nobody but its owner reads, from its first byte on."""

    def _open(self):  # type: ignore[no-untyped-def]
        descriptor = os.open(self.baseFilename, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.fchmod(descriptor, 0o600)
        return os.fdopen(descriptor, "a", encoding="utf-8")


def log_to(path: Path, *, level: int = logging.INFO, max_bytes: int = LOG_BYTES, kept: int = LOGS_KEPT) -> None:
    """Send this process's log to `path`: at most `kept` older files of `max_bytes` each beside it. One process a file.

    Asked again for the same file nothing changes.
    """
    root = logging.getLogger()
    if any(isinstance(h, OwnersRotatingFile) and h.baseFilename == os.path.abspath(path) for h in root.handlers):
        return
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handler = OwnersRotatingFile(path, maxBytes=max_bytes, backupCount=kept, encoding="utf-8")
    handler.setFormatter(JsonLines())
    root.addHandler(handler)
    root.setLevel(level)
