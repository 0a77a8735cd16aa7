"""Who may take part: `registry.sqlite3` of a server's folder. A site is its key; its name is what the operator says.

A key that was removed or revoked stays in the list for ever, so that it cannot come back (Flower would not take it a
second time either); its name is free for a new key.
"""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from wardround.errors import UsageError, WardroundError
from wardround.identity import SITE_NAME, key_fingerprint
from wardround.storage.atomic import owner_only
from wardround_server.operations.paths import REGISTRY_FILE

WAIT_S = 10.0  # for another process that is writing
_SITES = """
CREATE TABLE IF NOT EXISTS sites (
    fingerprint TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    public_key TEXT NOT NULL,
    added TEXT NOT NULL,
    revoked_at TEXT,
    ended TEXT CHECK (ended IN ('removed', 'revoked'))
);
CREATE UNIQUE INDEX IF NOT EXISTS one_key_a_name ON sites (name) WHERE revoked_at IS NULL;
"""


@dataclass(frozen=True, kw_only=True)
class EnrolledSite:
    """One site: its name, its key, since when; where it is out, until when and whether "removed" or "revoked". Times
    are ISO 8601, UTC.
    """

    name: str
    public_key: str
    fingerprint: str
    added: str
    revoked_at: str | None = None
    ended: str | None = None

    def to_json(self) -> dict[str, str | None]:
        """Plain values, for `--json`."""
        return {
            "name": self.name,
            "fingerprint": self.fingerprint,
            "public_key": self.public_key,
            "added": self.added,
            "revoked_at": self.revoked_at,
            "ended": self.ended,
        }


class Registry:
    """The sites of one server. Every change is one transaction and durable when the call returns.

    Raises `WardroundError` where the file is no registry or stays locked.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / REGISTRY_FILE

    def sites(self, *, revoked: bool = False) -> list[EnrolledSite]:
        """All that may take part, by name; with `revoked` also those that are out."""
        if not self._path.exists():
            return []  # looking makes no file
        query = "SELECT name, public_key, fingerprint, added, revoked_at, ended FROM sites"
        query += "" if revoked else " WHERE revoked_at IS NULL"
        with self._open() as database:
            rows = database.execute(query + " ORDER BY name, added").fetchall()
        return [EnrolledSite(**dict(row)) for row in rows]

    def add(self, name: str, public_key: str, record: Callable[[EnrolledSite], object] = str) -> EnrolledSite:
        """Enrol a key under a name. Asked again for the same, it changes nothing.

        `record` writes it down before it has an effect; where that fails, nobody is enrolled. Raises `UsageError` where
        the name has another key, the key another name, or the key was revoked.
        """
        if not re.fullmatch(SITE_NAME, name):
            raise UsageError(
                f"{name}: is not a valid site name; use up to 63 letters, digits, dots, hyphens and underscores"
            )
        fingerprint = key_fingerprint(public_key)
        with self._open() as database:
            for site in self._all(database):
                if site.fingerprint == fingerprint:
                    if site.revoked_at is not None:
                        raise UsageError(
                            f"this key was {site.ended} on {site.revoked_at[:10]}; the site needs a new key"
                        )
                    if site.name != name:
                        raise UsageError(f"this key is already enrolled as {site.name}")
                    return site
                if site.name == name and site.revoked_at is None:
                    raise UsageError(
                        f"{name}: is enrolled with another key; revoke that key first or choose another --name"
                    )
            key_alone = " ".join(public_key.split()[:2])  # without the comment, in which anything could stand
            site = EnrolledSite(name=name, public_key=key_alone, fingerprint=fingerprint, added=_now())
            values = (site.fingerprint, site.name, site.public_key, site.added)
            record(site)
            database.execute("INSERT INTO sites (fingerprint, name, public_key, added) VALUES (?, ?, ?, ?)", values)
        return site

    def end(self, name: str, how: Literal["removed", "revoked"]) -> EnrolledSite:
        """From now on the site's key is refused, for ever. Raises `UsageError` where no such site is enrolled."""
        with self._open() as database:
            site = self._enrolled(database, name)
            query = "UPDATE sites SET revoked_at = ?, ended = ? WHERE fingerprint = ?"
            database.execute(query, (_now(), how, site.fingerprint))
            return next(one for one in self._all(database) if one.fingerprint == site.fingerprint)

    def _enrolled(self, database: sqlite3.Connection, name: str) -> EnrolledSite:
        for site in self._all(database):
            if site.name == name and site.revoked_at is None:
                return site
        raise UsageError(f"{name}: no such site is enrolled; `wardround-server sites list` lists the enrolled ones")

    def _all(self, database: sqlite3.Connection) -> list[EnrolledSite]:
        rows = database.execute("SELECT name, public_key, fingerprint, added, revoked_at, ended FROM sites").fetchall()
        return [EnrolledSite(**dict(row)) for row in rows]

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """A connection for one transaction, which holds the file against other writers from its beginning."""
        os.close(owner_only(self._path, os.O_RDWR | os.O_CREAT))
        database = None
        try:
            database = sqlite3.connect(self._path, timeout=WAIT_S, isolation_level=None)
            database.row_factory = sqlite3.Row
            database.execute("PRAGMA synchronous = FULL")
            database.executescript(_SITES)
            database.execute("BEGIN IMMEDIATE")
            yield database
            if database.in_transaction:
                database.execute("COMMIT")
        except sqlite3.Error as error:
            raise WardroundError(f"{self._path}: the site registry cannot be used: {error}") from None
        finally:
            if database is not None:
                database.close()  # rolls back what was not committed


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
