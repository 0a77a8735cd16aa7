"""The ledger's file: an append-only chain of entries in SQLite, its witness file, and its migrations.

Each append is one transaction with full sync (the file, its journal, their folder) that excludes every other writer,
and is recorded in the witness before the call returns. This module does not interpret the entries.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from wardround.errors import LedgerError, RecordError
from wardround.records.chain import START, Row, Witness, body_of, linked, walked
from wardround.storage.atomic import owner_only
from wardround.wire.packets import RECENT_DIGITS, RECENT_ENTRIES, LedgerHead

SCHEMA_VERSION = 2
_BUSY_TIMEOUT_S = 30.0
_SCHEMA = (
    "CREATE TABLE entries (number INTEGER PRIMARY KEY, body TEXT NOT NULL, sha256 TEXT NOT NULL)",
    *(
        f"CREATE TRIGGER entries_{change} BEFORE {change} ON entries "
        "BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END"
        for change in ("UPDATE", "DELETE")
    ),
)
LOWEST = -(2**63)  # SQLite's lowest number, so that an inserted entry before the first one is found
_NOT_ITS_FAULT = tuple(
    f"SQLITE_{name}" for name in ("BUSY", "CANTOPEN", "FULL", "IOERR", "LOCKED", "NOMEM", "PERM", "READONLY")
)
RESTORE = (
    "put the newest copy back, ledger and ledger.head together, and keep this one for comparison; if every newer "
    "one is lost, see `wardround-site ledger accept-loss --help`"
)


class LedgerFile:
    """One open ledger file. Several processes may have the same file open."""

    def __init__(self, path: Path | None, lost: bool = False) -> None:
        """Open, create or migrate the file.

        Args:
            path: The file; None keeps the ledger in memory.
            lost: The entries that the witness recorded beyond the end of this file are known to be lost. The witness
                stays unchanged until `forget`.

        Raises:
            LedgerError: The file cannot be opened, created or migrated. The message is one line.
        """
        self.place = ":memory:" if path is None else str(path)
        self._witness = None if path is None else Witness(path.with_suffix(".head"))
        self._lost = lost
        # Read before the entries, so that entries appended by another process meanwhile are not mistaken for a loss.
        self._seen = self._witness.read() if self._witness and not lost else None
        self._appended: LedgerHead | None = None
        with self._in_one_line():
            self._connection = self._connected()
            with self.transaction():
                found = self._connection.execute("PRAGMA user_version").fetchone()[0]
                if found == 0:
                    self._create(self._seen)
                elif found == 1:
                    self._migrate_from_1()
                elif found != SCHEMA_VERSION:
                    raise LedgerError(
                        f"{self.place}: ledger schema {found}, this version needs {SCHEMA_VERSION}; upgrade wardround"
                    )

    def _connected(self) -> sqlite3.Connection:
        if self._witness:
            with suppress(OSError):  # SQLite reports the error
                os.close(owner_only(self.place, os.O_RDWR | os.O_CREAT))  # its journal gets the same mode
        connection = sqlite3.connect(self.place, timeout=_BUSY_TIMEOUT_S, isolation_level=None)
        connection.execute("PRAGMA synchronous = EXTRA")  # also syncs the folder after the journal is unlinked
        return connection

    def close(self) -> None:
        self._connection.close()

    @contextmanager
    def _in_one_line(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, UnicodeError) as error:  # UnicodeError: damage can make SQLite's message undecodable
            fix = RESTORE
            if getattr(error, "sqlite_errorname", "").startswith(_NOT_ITS_FAULT):
                fix = "check the disk, the file's owner and permissions, and other programs that use it; then try again"
            raise LedgerError(f"{self.place}: not a readable ledger ({error}); {fix}") from None

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Exclude every other writer; entries appended inside are durable and witnessed when the block ends."""
        self._appended = None
        with self._in_one_line():
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                self._roll_back()
                raise
        if self._witness and self._appended and not self._lost:
            self._witness.advance(self._appended)

    def _roll_back(self) -> None:
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")

    def append(self, head: LedgerHead, content: Mapping[str, Any]) -> LedgerHead:
        """Append an entry after `head`, which must be the last one, and return the new head.

        Must be called inside a transaction.
        """
        body = body_of({**content, "at": content.get("at", time.time())})
        after = linked(head, body)
        self._connection.execute("INSERT INTO entries VALUES (?, ?, ?)", (after.entries, body, after.sha256))
        self._appended = after
        return after

    def rows(self, first: int = LOWEST) -> list[Row]:
        """Return all entries, or those from number `first` on.

        Raises:
            LedgerError: The entries cannot be read.
        """
        with self._in_one_line():
            return _rows(self._connection, first)

    def recent(self, head: LedgerHead) -> str:
        """Return the first digits of the hashes of the last entries up to `head`, as sent in `wire.Answer`."""
        select = "SELECT substr(sha256, 1, ?) FROM entries WHERE number > ? AND number <= ? ORDER BY number"
        numbers = (RECENT_DIGITS, head.entries - RECENT_ENTRIES, head.entries)
        with self._in_one_line():
            return "".join(digits for (digits,) in self._connection.execute(select, numbers))

    def walked(self, rows: list[Row], head: LedgerHead) -> Iterator[tuple[LedgerHead, dict[str, Any]]]:
        """Call `chain.walked` with the file's name added to its errors."""
        try:
            yield from walked(rows, head)
        except RecordError as error:
            raise LedgerError(f"{self.place}: {error}; {RESTORE}") from None

    def hold_against_witness(self, head: LedgerHead) -> None:
        """Check that the witness, as it was on opening, recorded an entry of this chain; then advance it to `head`.

        `head` is the last entry.

        Raises:
            LedgerError: The witness recorded a later entry, or an entry of another chain.
        """
        if self._witness and not self._lost:
            self._compare(self._connection, self._seen, head)
            self._witness.advance(head)  # the witness is behind if the process was killed between the two writes

    def forget(self, head: LedgerHead) -> None:
        """Reset the witness to `head`, the last entry, so that it no longer records the lost entries.

        From then on the witness is kept up to date again.
        """
        if self._witness:
            self._witness.go_back_to(head)
        self._lost = False

    def verified(self) -> LedgerHead:
        """Read everything from the disk again, check it and return the head.

        Checks SQLite's own structure, the schema, the chain and the witness. A clean result means that the entries are
        those that were written, and that they are complete as far as the witness recorded. The check cannot detect that
        file and witness were both restored from an old copy, or both rewritten by someone who recomputed the whole
        chain; a server that has seen a later head can.

        Raises:
            LedgerError: A check failed. The message names the first fault.
        """
        seen = self._witness.read() if self._witness else None
        with self._in_one_line(), closing(self._connected()) as fresh:  # without cached pages of the file
            connection = fresh if self._witness else self._connection
            faults = [text for (text,) in connection.execute("PRAGMA integrity_check")]
            if faults != ["ok"]:
                first = " ".join(str(faults[0]).split())
                raise LedgerError(f"{self.place}: the file is damaged ({first}); {RESTORE}")
            schema = "SELECT sql FROM sqlite_schema WHERE name NOT LIKE 'sqlite!_%' ESCAPE '!' ORDER BY rowid"
            if tuple(text for (text,) in connection.execute(schema)) != _SCHEMA:
                raise LedgerError(f"{self.place}: its tables or triggers were altered; {RESTORE}")
            heads = [head for head, _ in self.walked(_rows(connection, LOWEST), START)]
            self._compare(connection, seen, heads[-1] if heads else START)
            return heads[-1] if heads else START

    def _compare(self, connection: sqlite3.Connection, seen: LedgerHead | None, head: LedgerHead) -> None:
        if seen is None:
            return
        past = f"ledger.head records {seen.entries} entries"
        if head.entries < seen.entries:
            raise LedgerError(f"{self.place}: is an older copy: it ends at entry {head.entries}, but {past}; {RESTORE}")
        with self._in_one_line():
            row = connection.execute("SELECT sha256 FROM entries WHERE number = ?", (seen.entries,)).fetchone()
        if row != (seen.sha256,):
            raise LedgerError(
                f"{self.place}: has a different history: {past}, and the last of them differs here; {RESTORE}"
            )

    def _create(self, seen: LedgerHead | None) -> None:
        if seen is not None:
            raise LedgerError(
                f"{self.place}: is missing or empty, but ledger.head records {seen.entries} entries; {RESTORE}"
            )
        for statement in _SCHEMA:
            self._connection.execute(statement)
        self._connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        self.append(START, {"kind": "opened", "secret": secrets.token_hex(16)})

    def _migrate_from_1(self) -> None:
        """Migrate schema 1, which had one table each for holds, attempts and settlements, and no chain.

        Numbers and times are kept.
        """
        select = self._connection.execute
        holds = select(
            "SELECT study, run, attempts, noise_multiplier, sampling_rate, steps_per_attempt, unit, at FROM holds"
        ).fetchall()
        attempts = select(
            "SELECT a.id, a.study, a.run, a.round, a.weights, a.at, s.reply_sha256, s.at FROM attempts AS a "
            "LEFT JOIN settlements AS s ON s.attempt = a.id ORDER BY a.id"
        ).fetchall()
        for table in ("settlements", "attempts", "holds"):
            select(f"DROP TABLE {table}")
        self._create(None)
        head = self._appended or START
        for study, run, count, noise, rate, steps, unit, at in holds:
            event = {"kind": "gaussian", "noise_multiplier": noise, "sampling_rate": rate, "steps": steps, "unit": unit}
            shares = {"train": {"attempts": count, "event": event}}
            head = self.append(head, {"kind": "hold", "study": study, "run": run, "shares": shares, "at": at})
        for number, study, run, round_, weights, at, reply, settled_at in attempts:
            content = {"id": number, "study": study, "run": run, "round": round_, "weights": weights}
            head = self.append(head, {"kind": "attempt", "purpose": "train", **content, "at": at})
            if reply is not None:
                settled = {"kind": "settled", "id": number, "reply_sha256": reply, "at": settled_at}
                head = self.append(head, settled)


def _rows(connection: sqlite3.Connection, first: int) -> list[Row]:
    select = "SELECT number, body, sha256 FROM entries WHERE number >= ? ORDER BY number"
    return connection.execute(select, (first,)).fetchall()
