"""Logs as JSON lines: time, level, logger, text, and the site, run and round if known. Rotated, mode 0600.

{"run":"…","round":3,"at":"2026-11-24T21:50:03.120Z","level":"warning","logger":"wardround_client.flower.client_app","text":"…"}

A process started by a daemon prints such lines (`print_lines`), and the daemon writes them unchanged to its own log
(`relayed`), so that one file has all of them with their site, run and round. Each line begins with a secret that the
daemon gave the process in its environment, because a program may print text from its peer, which could imitate a log
entry.

Texts are truncated, so that a few huge lines cannot push older entries out of the rotated files.

A server's log contains no text from a site's data, because none reaches the server: the wire has codes only
(`wire/packets.py`). A site's log is the hospital's own, contains whole tracebacks, and never leaves the site.
"""

from __future__ import annotations

import contextvars
import json
import logging
import logging.handlers
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from wardround.printable import json_line
from wardround.storage.atomic import owner_only
from wardround.storage.folders import make_folder

LOG_BYTES, LOGS_KEPT = 10_000_000, 10
TEXT_CHARACTERS, TRACEBACK_CHARACTERS = 4096, 16384
SECRET = "WARDROUND_LOG_SECRET"  # environment variable with the secret that a daemon's process puts before each entry
_LEVELS = ("debug", "info", "warning", "error", "critical")
_place: contextvars.ContextVar[dict[str, str | int]] = contextvars.ContextVar("place", default={})  # noqa: B039


@contextmanager
def at(**place: str | int) -> Iterator[None]:
    """Add this site, run or round to everything logged inside the block by this thread or task."""
    token = _place.set({**_place.get(), **place})
    try:
        yield
    finally:
        _place.reset(token)


class JsonLines(logging.Formatter):
    """Formats a record as one JSON object on one line.

    A traceback is included as text. All characters are printable, so the log can be read with any tool.
    """

    def format(self, record: logging.LogRecord) -> str:
        if (content := getattr(record, "relayed", None)) is not None:
            return json_line(_bounded(content))
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        content = {
            **_place.get(),
            "at": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "text": record.getMessage(),
        }
        if record.exc_info:
            content["traceback"] = self.formatException(record.exc_info)
        return json_line(_bounded(content))


def cut(text: str, characters: int = TEXT_CHARACTERS) -> str:
    """Return `text`, shortened to its beginning and its end if it is longer than `characters`."""
    if len(text) <= characters:
        return text
    half = characters // 2
    return f"{text[:half]} [{len(text) - 2 * half} characters left out] {text[-half:]}"


def _bounded(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return an entry with its texts truncated; tracebacks have a larger limit, and keep the error at their end."""
    most = {"traceback": TRACEBACK_CHARACTERS}
    return {
        name: cut(value, most.get(name, TEXT_CHARACTERS)) if isinstance(value, str) else value
        for name, value in content.items()
    }


class OwnersRotatingFile(logging.handlers.RotatingFileHandler):
    """A rotated log file that only its owner can read, from its first byte on."""

    def _open(self) -> TextIOWrapper:
        return open(self.baseFilename, "a", encoding="utf-8", opener=owner_only)


def log_to(
    path: Path,
    *,
    level: int = logging.INFO,
    max_bytes: int = LOG_BYTES,
    kept: int = LOGS_KEPT,
    names: Sequence[str] = ("",),
) -> None:
    """Send this process's log to `path`. Only one process may use a file. Repeating the call for a file has no effect.

    Args:
        path: The log file.
        level: The lowest level that is logged.
        max_bytes: The size at which the file is rotated.
        kept: How many older files are kept beside it, of `max_bytes` each.
        names: The loggers to log, with those below them; by default all.
    """
    loggers = [logging.getLogger(name or None) for name in names]
    for handler in (handler for logger in loggers for handler in logger.handlers):
        if isinstance(handler, OwnersRotatingFile) and handler.baseFilename == os.path.abspath(path):
            return
    make_folder(path.parent)
    handler = OwnersRotatingFile(path, maxBytes=max_bytes, backupCount=kept, encoding="utf-8")
    handler.setFormatter(JsonLines())
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(level)


class _Stdout(logging.StreamHandler):
    """A handler that writes to the current standard output, because Flower temporarily replaces `sys.stdout`."""

    def __init__(self) -> None:
        super().__init__(sys.stdout)
        self._secret = os.environ.get(SECRET, "")

    def format(self, record: logging.LogRecord) -> str:
        return self._secret + super().format(record)

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stdout
        super().emit(record)


def print_lines(*names: str, level: int = logging.INFO) -> None:
    """Print the records of the loggers `names` and those below them as JSON lines, for a daemon that relays them."""
    for logger in map(logging.getLogger, names):
        if not any(isinstance(handler, _Stdout) for handler in logger.handlers):
            handler = _Stdout()
            handler.setFormatter(JsonLines())
            logger.addHandler(handler)
            logger.setLevel(level)
            logger.propagate = False


def relayed(line: str, secret: str) -> bool:
    """Write `line` to this process's log unchanged, if `print_lines` printed it in a process that was given `secret`.

    Returns:
        Whether the line was such an entry.
    """
    content = _entry(line.removeprefix(secret)) if secret and line.startswith(secret) else None
    if content is None:
        return False
    level = getattr(logging, content["level"].upper())
    record = logging.LogRecord(content["logger"], level, "", 0, content["text"], None, None)
    record.relayed = content
    logging.getLogger(content["logger"]).handle(record)
    return True


def _entry(line: str) -> dict[str, Any] | None:
    if not line.startswith("{"):
        return None
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return None
    texts = ("at", "level", "logger", "text")
    if any(not isinstance(content.get(key), str) for key in texts) or content["level"] not in _LEVELS:
        return None
    return content
