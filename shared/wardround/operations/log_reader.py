"""Reads logs: the JSON lines of `logs.py`, including rotated files, merged over several files in order of time.

A log consists of its older parts (NAME.log.10 … NAME.log.1), then NAME.log. A line that was cut short by a kill, or
that another program wrote, is shown unchanged and never hides another line.
"""

from __future__ import annotations

import heapq
import json
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from wardround.errors import WardroundError
from wardround.printable import escaped, json_line

LOOK_S = 0.5
UNREADABLE = "unreadable"
PLACES = ("site", "run", "round")

Entry = dict[str, Any]


class Logs:
    """All logs of a folder (its `*.log`). Between two calls of `news` no entry is missed or returned twice."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[Path, _Log] = {}

    def news(self) -> Iterator[Entry]:
        """Yield every entry not returned before, oldest first, including those of logs created in the meantime."""
        for path in sorted(self._folder.glob("*.log")):
            if path not in self._known:
                self._known[path] = _Log(path)
        yield from heapq.merge(*(log.news() for log in self._known.values()), key=lambda entry: entry["at"])


class _Log:
    """One log that grows, and is renamed when it is full."""

    def __init__(self, path: Path) -> None:
        self._path, self._latest, self._rest = path, "", b""
        self._file: BinaryIO | None = None

    def news(self) -> Iterator[Entry]:
        if self._file is None:
            self._file = self._path.open("rb")
            here = _inode(self._path)
            older = [part for part in self._path.parent.glob(f"{self._path.name}.*") if part.suffix[1:].isdigit()]
            for part in sorted(older, key=lambda part: -int(part.suffix[1:])):
                if _inode(part) not in (None, here):
                    yield from map(self._entry, part.read_bytes().rstrip(b"\n").split(b"\n"))
        yield from self._lines(self._file)
        if _inode(self._path) not in (None, os.fstat(self._file.fileno()).st_ino):
            yield from self._lines(self._file)  # lines written between the read above and the renaming
            self._file.close()
            self._file, self._rest = self._path.open("rb"), b""
            yield from self._lines(self._file)

    def _lines(self, file: BinaryIO) -> Iterator[Entry]:
        """Yield the lines that have been completed since the last call."""
        for line in file:
            self._rest += line
            if line.endswith(b"\n"):
                ended, self._rest = self._rest, b""
                yield self._entry(ended.rstrip(b"\n"))

    def _entry(self, line: bytes) -> Entry:
        """Return a line as an entry with `at`, `level` and `text`.

        A line that is not an entry gets the level `UNREADABLE` and the time of the entry before it.
        """
        try:
            content = json.loads(line)
            if all(isinstance(content[key], str) for key in ("at", "level", "text")):
                self._latest = content["at"]
                return content
        except (ValueError, TypeError, KeyError, RecursionError):
            pass
        return {"at": self._latest, "level": UNREADABLE, "text": line.decode("utf-8", "backslashreplace")}


def show(
    folder: Path, wanted: Callable[[Entry], bool], *, last: int | None, follow: bool, as_json: bool, whose: str
) -> None:
    """Print a folder's entries that match `wanted`, or the `last` of them; with `follow` also new ones, until Ctrl-C.

    If no entry matches, a line on stderr states that nothing is logged about `whose`.

    Raises:
        WardroundError: The folder contains no log.
    """
    if not any(folder.glob("*.log")):
        raise WardroundError(f"{folder}: contains no log yet; `start` creates one")

    def say(entry: Entry) -> None:
        print(json_line(entry) if as_json else line_of(entry), flush=follow)

    logs, shown_lines = Logs(folder), 0
    first = filter(wanted, logs.news())
    for entry in first if last is None else deque(first, maxlen=last):
        say(entry)
        shown_lines += 1
    if not shown_lines:
        print(f"nothing is logged about {whose}{' yet' if follow else ''}", file=sys.stderr)
    while follow:
        time.sleep(LOOK_S)
        for entry in filter(wanted, logs.news()):
            say(entry)


def line_of(entry: Entry) -> str:
    """Return an entry as text: time, level, place and message, escaped because peers and libraries write into logs."""
    level = "" if entry["level"] == "info" else f"{entry['level'].upper()} "
    place = " ".join(f"{name} {entry[name]}" for name in PLACES if name in entry)
    line = " ".join(filter(None, (entry["at"], f"[{place}]" if place else "", f"{level}{entry['text']}")))
    return "\n".join(map(escaped, [line, *str(entry.get("traceback", "")).splitlines()]))


def names_place(entry: Entry, name: str, value: str) -> bool:
    """Whether an entry is about this run or site: its field has the value, or its text contains it as a word."""
    if name in entry:
        return bool(entry[name] == value)
    text = str(entry["text"])
    return value in text.translate(str.maketrans(",:;()", "     ")).split()


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return None
