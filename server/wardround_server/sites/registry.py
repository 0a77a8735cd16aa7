"""The registry of enrolled sites: `registry.sqlite3` of a server's folder.

A site is identified by its key; the operator chooses its name. A key that was removed or revoked stays in the list
permanently, so that it cannot be enrolled again (Flower would not accept it a second time either). Its name is free for
a new key.
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

WAIT_S = 10.0  # how long to wait for another process that is writing
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
    """One site: its name, its key and when it was added. Times are ISO 8601, UTC.

    For a site that may no longer take part, `revoked_at` is when it was excluded and `ended` is "removed" or "revoked".
    """

    name: str
    public_key: str
    fingerprint: str
    added: str
    revoked_at: str | None = None
    ended: str | None = None

    def to_json(self) -> dict[str, str | None]:
        """Return plain values, for `--json`."""
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

    All methods raise `WardroundError` if the file is not a registry or stays locked for `WAIT_S` seconds.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / REGISTRY_FILE

    def sites(self, *, revoked: bool = False) -> list[EnrolledSite]:
        """Return the sites that may take part, sorted by name; with `revoked` also removed and revoked ones."""
        if not self._path.exists():
            return []  # a query must not create the file
        query = "SELECT name, public_key, fingerprint, added, revoked_at, ended FROM sites"
        query += "" if revoked else " WHERE revoked_at IS NULL"
        with self._open() if os.access(self._path, os.W_OK) else self._open_to_read() as database:
            rows = database.execute(query + " ORDER BY name, added").fetchall()
        return [EnrolledSite(**dict(row)) for row in rows]

    def add(self, name: str, public_key: str, record: Callable[[EnrolledSite], object] = str) -> EnrolledSite:
        """Enrol a key under a name and return the site. Repeating the call changes nothing.

        `record` is called with the site before it is enrolled; if it raises, the site is not enrolled. Raises
        `UsageError` if the name has another key, the key has another name, or the key was removed or revoked.
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
            key_alone = " ".join(public_key.split()[:2])  # without the comment, which may contain any text
            site = EnrolledSite(name=name, public_key=key_alone, fingerprint=fingerprint, added=_now())
            values = (site.fingerprint, site.name, site.public_key, site.added)
            record(site)
            database.execute("INSERT INTO sites (fingerprint, name, public_key, added) VALUES (?, ?, ?, ?)", values)
        return site

    def end(self, name: str, how: Literal["removed", "revoked"]) -> EnrolledSite:
        """Refuse the site's key permanently and return the site. Raises `UsageError` if no such site is enrolled."""
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
        """Open a connection for one transaction, which locks the file against other writers from its start."""
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
                database.close()  # rolls back uncommitted changes

    @contextmanager
    def _open_to_read(self) -> Iterator[sqlite3.Connection]:
        """Open a connection that only reads, for a folder that is mounted read-only or belongs to someone else."""
        database = None
        try:
            database = sqlite3.connect(f"{self._path.absolute().as_uri()}?mode=ro", uri=True, timeout=WAIT_S)
            database.row_factory = sqlite3.Row
            yield database
        except sqlite3.Error as error:
            raise WardroundError(f"{self._path}: the site registry cannot be used: {error}") from None
        finally:
            if database is not None:
                database.close()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
