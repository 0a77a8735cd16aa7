"""The audit log: decisions, refusals and releases, one JSON line each, in a hash chain that anyone can verify.

    {"entry":{"at":"2026-11-24T21:50:03Z","event":"forgot","count":3},"number":7,"previous":"9f…","sha256":"41…"}

Lines are only appended, each is on the disk before the call returns, and several processes may share the file. A line
cut short by a kill stays where it is, and the entry after it (`torn`) has the number and hash of its bytes.
`audit.head` beside the log stores the last entry's number and hash, so that a missing end is noticed as well. A chain
cannot show that someone with write access to both files rewrote them from some entry on. To detect that, keep the head
(printed by `audit verify`) elsewhere.

`append` checks the log from the entry named in `audit.head`, so its cost does not grow with the log. It notices a
missing or torn end and a different history. A byte altered further back is found by `verified` and when a daemon
starts, because both read the whole log.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wardround.errors import AuditError, RecordError
from wardround.records.audit_events import Event, Started, Torn
from wardround.records.chain import START, Row, Witness, body_of, linked, walked
from wardround.records.refusal_counts import RefusalFile
from wardround.storage.atomic import fsync
from wardround.storage.disk_errors import cause
from wardround.storage.locks import lock, open_lock
from wardround.wire.packets import LedgerHead

AUDIT_FILE = "audit.jsonl"
RESTORE = "put the newest copy back, with its .head file, and keep this one for comparison"
TAIL_BYTES = 64 * 2**10  # read by `append`; the witness's entry is the last one or the one before it
_KEYS = {"entry", "number", "previous", "sha256"}


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """The content of a part of a log: its entries in order with their hashes, and the head after the last of them.

    `torn` contains the bytes at the end that are not an entry. `unended` means that the last entry is complete except
    for its line end.
    """

    entries: tuple[dict[str, Any], ...]
    hashes: tuple[str, ...]
    head: LedgerHead
    torn: bytes = b""
    unended: bool = False


def read_entries(content: bytes, head: LedgerHead = START) -> Stretch:
    """Follow the chain from `head` over the lines of `content`.

    Raises:
        AuditError: An entry is missing or was altered, or there are bytes that are not an entry and that the next entry
            does not record as torn. The message names the first faulty entry.
    """
    entries: list[dict[str, Any]] = []
    hashes: list[str] = []
    torn, unended = b"", False
    for line in _lines(content):
        row, previous = _row(line)
        if row is None:
            torn += line
            continue
        before = head
        try:
            ((head, entry),) = walked([row], before)
        except RecordError as error:
            raise AuditError(str(error)) from None
        if previous != before.sha256:
            raise AuditError(f"entry {head.entries} was altered: it refers to a different previous entry")
        named = (entry.get("count"), entry.get("sha256")) if entry.get("event") == Torn.kind else (0, _hash(b""))
        if named != (len(torn), _hash(torn)):
            raise AuditError(
                f"before entry {head.entries} there are {len(torn)} bytes that are not an entry, unreported"
            )
        entries.append({"number": head.entries, **entry})
        hashes.append(head.sha256)
        torn, unended = b"", not line.endswith(b"\n")
    return Stretch(entries=tuple(entries), hashes=tuple(hashes), head=head, torn=torn, unended=unended)


def _lines(content: bytes) -> list[bytes]:
    """Split into lines with their ends, at \\n only: torn bytes may contain any other separator."""
    *ended, rest = content.split(b"\n")
    return [line + b"\n" for line in ended] + ([rest] if rest else [])


def _row(line: bytes) -> tuple[Row | None, str]:
    """Return a line's entry as in the chain, and the hash of its predecessor; None if the line is not an entry."""
    try:
        content = json.loads(line)
        row, previous = (content["number"], body_of(content["entry"]), content["sha256"]), content["previous"]
        as_written = set(content) == _KEYS and body_of(content).encode() == line.rstrip(b"\n")
    except (ValueError, TypeError, KeyError, RecursionError):
        return None, ""
    return (row, previous) if as_written and type(row[0]) is int else (None, "")


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class AuditLog:
    """One open log. Threads and processes may share the file; appends are mutually exclusive."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        """Set up the log. No file is created or read before the first `append`."""
        self._path, self._clock = path, clock
        self._witness = Witness(path.with_suffix(".head"), AuditError)
        self._refusals = RefusalFile(path.with_suffix(".refused"))
        self._appended, self._lock = START, threading.Lock()  # _appended: the last entry that this process wrote

    def append(self, event: Event) -> LedgerHead:
        """Record one event and return the head. On return the event is durable and the witness has been updated.

        If the same refusal occurs many times on one day, only the first ones are entries; the others are counted
        (refusal_counts.py).

        Raises:
            AuditError: The log was altered or shortened, or cannot be written. The caller must then not carry out the
                action that the event describes: a site that cannot record what it sends does not send.
        """
        with self._lock, self._exclusive() as descriptor:
            found = self._taken_in(descriptor, whole=isinstance(event, Started))
            at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._clock()))
            events = self._refusals.entries_of(event, at[:10])
            head = self._written(descriptor, found, events, at) if events else found.head
            self._refusals.keep()  # after the log: a kill between the two leaves one entry that is not counted
            return head

    def _written(self, descriptor: int, found: Stretch, events: list[Event], at: str) -> LedgerHead:
        """Append the events to the log in one write."""
        head, text = found.head, b"\n" if found.unended else b""
        if found.torn:
            text = b"" if found.torn.endswith(b"\n") else b"\n"
            torn = found.torn + text
            events = [Torn(count=len(torn), sha256=_hash(torn)), *events]
        for event in events:
            head, line = _line(head, event, at)
            text += line
        if os.write(descriptor, text) != len(text):
            raise AuditError(f"{self._path}: could be written only in part; free some space")
        os.fsync(descriptor)
        self._appended = head
        self._witness.advance(head)
        return head

    def _taken_in(self, descriptor: int, whole: bool) -> Stretch:
        """Read the log from the last entry that the witness or this process has seen.

        All of it is read if that entry is not near the end, or if `whole` is true.
        """
        seen = max(self._witness.read() or START, self._appended, key=lambda head: head.entries)
        size = os.fstat(descriptor).st_size
        near = _from_entry(os.pread(descriptor, TAIL_BYTES, max(0, size - TAIL_BYTES)), seen)
        if near is not None and not whole:
            with suppress(AuditError):  # reading the whole log below raises the error that names the fault
                return read_entries(*near)
        return _checked(self._path, os.pread(descriptor, size, 0), seen)

    @contextmanager
    def _exclusive(self) -> Iterator[int]:
        new = not self._path.exists()
        try:
            descriptor = open_lock(self._path, os.O_APPEND)  # the log is never replaced, so it is its own lock file
            try:
                lock(descriptor)
                yield descriptor
            finally:
                os.close(descriptor)
            if new:
                fsync(self._path.parent)
        except OSError as error:
            raise AuditError(f"{self._path}: cannot be written: {cause(error)}") from None


def _line(head: LedgerHead, event: Event, at: str) -> tuple[LedgerHead, bytes]:
    entry = {"at": at, **event.to_json()}
    after = linked(head, body_of(entry))
    content = {"entry": entry, "number": after.entries, "previous": head.sha256, "sha256": after.sha256}
    return after, f"{body_of(content)}\n".encode()


def _from_entry(tail: bytes, seen: LedgerHead) -> tuple[bytes, LedgerHead] | None:
    """Return the end of a log from the entry `seen` on, and the head before it; None if `tail` does not contain it."""
    lines = _lines(tail)
    for at in range(len(lines) - 1, -1, -1):
        row, previous = _row(lines[at])
        if row is None or row[0] > seen.entries:
            continue
        if (row[0], row[2]) != (seen.entries, seen.sha256):
            return None
        return b"".join(lines[at:]), LedgerHead(entries=row[0] - 1, sha256=previous)
    return None


def verified(path: Path) -> Stretch:
    """Read a whole log and check the chain, and the witness if `FILE.head` is beside it. A copy of a log will do.

    Raises:
        AuditError: The log cannot be read or is faulty. The message is one line with the file, the first fault, and
            what to do.
    """
    witness = Witness(path.with_suffix(".head"), AuditError)
    seen = witness.read()  # first, so that an entry that a daemon appends meanwhile does not look like a loss
    try:
        content = path.read_bytes()
    except OSError as error:
        raise AuditError(f"{path}: cannot be read: {cause(error)}") from None
    return _checked(path, content, seen or START)


def _checked(path: Path, content: bytes, seen: LedgerHead) -> Stretch:
    try:
        found = read_entries(content)
    except AuditError as error:
        raise AuditError(f"{path}: {error}; {RESTORE}") from None
    if found.head.entries < seen.entries:
        raise AuditError(
            f"{path}: ends at entry {found.head.entries}, but its .head file records {seen.entries}; {RESTORE}"
        )
    if seen.entries and found.hashes[seen.entries - 1] != seen.sha256:
        raise AuditError(
            f"{path}: a different history: its .head file records entry {seen.entries}, which is not here; {RESTORE}"
        )
    return found
