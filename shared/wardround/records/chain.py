"""A hash chain of entries, and a witness file that stores the last hash. The ledger and the audit log are such chains.

    sha256(entry n) = SHA-256("<sha256 of entry n-1>\\n<n>\\n<body>"), the body being canonical JSON

The hash of the last entry, the head, therefore determines all entries: an entry that was changed, removed or inserted
is found by walking the chain. A chain cannot show that its end is missing. For that the head is also stored elsewhere:
in a witness beside the file, and for the ledger on every server that received a reply.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from wardround.errors import LedgerError, RecordError
from wardround.storage.atomic import fsync
from wardround.storage.disk_errors import cause
from wardround.storage.json_numbers import json_numbers
from wardround.storage.locks import lock, open_lock
from wardround.wire.packets import LedgerHead

START = LedgerHead(entries=0, sha256="0" * 64)
Row = tuple[int, str, str]  # an entry as it is stored: its number, counted from 1, its body, its sha256
_WITNESS = re.compile(r"(\d{15}) ([0-9a-f]{64})\n")


def linked(head: LedgerHead, body: str) -> LedgerHead:
    """Return the head after appending an entry with this body to `head`."""
    number = head.entries + 1
    return LedgerHead(entries=number, sha256=hashlib.sha256(f"{head.sha256}\n{number}\n{body}".encode()).hexdigest())


def body_of(content: Mapping[str, Any]) -> str:
    """Return the canonical JSON of an entry. Floats are read back bit for bit; infinity is written as "inf"."""
    return json.dumps(json_numbers(content), sort_keys=True, separators=(",", ":"), allow_nan=False)


def walked(rows: Iterable[Row], head: LedgerHead) -> Iterator[tuple[LedgerHead, dict[str, Any]]]:
    """Follow the chain from `head` over the rows after it, and yield each entry's head and content.

    Raises:
        RecordError: An entry is missing or was altered. The message names the first such entry.
    """
    for number, body, sha256 in rows:
        if number != head.entries + 1:
            raise RecordError(f"entry {head.entries + 1} is missing: entry {number} follows entry {head.entries}")
        after = linked(head, body)
        if after.sha256 != sha256:
            raise RecordError(f"entry {number} was altered: its hash differs from the one it was written with")
        head = after
        yield head, json.loads(body)


class Witness:
    """The file that stores the head: one line, fsynced, which only moves forward. Processes may share it."""

    def __init__(self, path: Path, error: type[RecordError] = LedgerError) -> None:
        self._path, self._error = path, error

    def read(self) -> LedgerHead | None:
        """Return the last head stored; None if there is none. Raises the record's error if the file is damaged."""
        try:
            text = self._path.read_text(encoding="ascii", errors="replace")
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._error(f"{self._path}: cannot be read: {cause(error)}") from None
        return self._parsed(text)

    def advance(self, head: LedgerHead) -> None:
        """Store `head`, unless a later one is stored already; durable on return.

        The line has a fixed length and is overwritten in place, in one write within one sector, so a kill leaves either
        the old line or the new one.

        Raises:
            RecordError: The file cannot be written or is damaged. The type is the one given for this record.
        """
        new = not self._path.exists()
        try:
            descriptor = open_lock(self._path)  # overwritten in place, so it is its own lock file
            try:
                lock(descriptor)
                text = os.pread(descriptor, 4096, 0).decode("ascii", errors="replace")
                seen = self._parsed(text) if text else None
                if seen is None or seen.entries < head.entries:
                    os.pwrite(descriptor, f"{head.entries:015d} {head.sha256}\n".encode(), 0)
                    os.fsync(descriptor)
            finally:
                os.close(descriptor)
            if new:
                fsync(self._path.parent)
        except OSError as error:
            raise self._error(f"{self._path}: cannot be written: {cause(error)}") from None

    def go_back_to(self, head: LedgerHead) -> None:
        """Store `head`, whatever was stored before.

        This is the only way to move backwards, for a loss that a person has accepted by name.
        """
        try:
            self._path.unlink(missing_ok=True)
        except OSError as error:
            raise self._error(f"{self._path}: cannot be written: {cause(error)}") from None
        self.advance(head)

    def _parsed(self, text: str) -> LedgerHead | None:
        if not text:  # the file was created, but a kill came before its first line was written
            return None
        found = _WITNESS.fullmatch(text)
        if found is None:
            raise self._error(f"{self._path}: damaged; restore it together with the newest copy of its record")
        return LedgerHead(entries=int(found[1]), sha256=found[2])
