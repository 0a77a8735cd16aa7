"""The last ledger head seen of each site, by site name: `ledger_heads.json` of a server's folder.

The file outlives runs and keys: a name keeps its ledger when the site is enrolled again. A site that restored an old
copy of its ledger has lost the record of what it spent on its patients. Its replies are refused until its ledger
contains the last head seen here, or until the operator accepts another ledger.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from wardround.errors import UsageError, WardroundError, WireError
from wardround.records.chain import START
from wardround.storage.atomic import write_private
from wardround.storage.locks import locked
from wardround.wire.packets import RECENT_DIGITS, LedgerHead
from wardround_server.operations.paths import HEADS_FILE, HEADS_LOCK


@dataclass(frozen=True, kw_only=True)
class SeenHead:
    """The last head seen of a site's ledger and when it was seen.

    `accepted_at` is when the operator last accepted another ledger; if `entries` is 0, no reply has come since. Times
    are ISO 8601, UTC.
    """

    entries: int
    sha256: str
    seen_at: str
    accepted_at: str | None = None

    @property
    def head(self) -> LedgerHead:
        return LedgerHead(entries=self.entries, sha256=self.sha256)


class LedgerHeads:
    """The heads of all sites. Every change is durable when the call returns; several runs may share the file."""

    def __init__(self, folder: Path | None) -> None:
        """With `folder` None the heads are kept in memory, for simulations that write no files."""
        self._path = None if folder is None else folder / HEADS_FILE
        self._known: dict[str, SeenHead] = {}

    def known(self) -> dict[str, SeenHead]:
        """Return the last heads by site name. Raises `WardroundError` if the file is damaged."""
        if self._path is None:
            return dict(self._known)
        try:
            content = json.loads(self._path.read_bytes())
            return {site: SeenHead(**seen) for site, seen in content.items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise WardroundError(
                f"{self._path}: cannot be read ({type(error).__name__}); restore it from a backup; without it no "
                "rollback of a site's ledger is detected"
            ) from None

    def take(self, site: str, now: LedgerHead | None, recent: str) -> None:
        """Store the ledger head of a site's reply if the last one seen belongs to the same ledger.

        `recent` is as in `wire.packets.Answer`. Raises `WireError` "ledger-rollback" or "ledger-gap"; see
        `check_extends`.
        """
        with self._changing() as known:
            before = known.get(site)
            check_extends(now, recent, before.head if before else START)
            if now is not None and (before is None or now != before.head):
                accepted_at = before.accepted_at if before else None
                known[site] = SeenHead(entries=now.entries, sha256=now.sha256, seen_at=_now(), accepted_at=accepted_at)

    def take_over(self, heads: Mapping[str, LedgerHead]) -> None:
        """Store the heads of a checkpoint, for a run that began before this file existed.

        A later head is kept, and so is the entry of a site whose ledger the operator accepted, because the checkpoint
        may be older than that decision.
        """
        with self._changing() as known:
            for site, head in heads.items():
                before = known.get(site)
                if before is None or (before.accepted_at is None and before.entries < head.entries):
                    known[site] = SeenHead(entries=head.entries, sha256=head.sha256, seen_at=_now())

    def accept(self, site: str, record: Callable[[LedgerHead], object]) -> LedgerHead:
        """Accept any head in the next reply of a site; return the last one seen.

        `record` is called with that head before the change takes effect. Raises `UsageError` if no head was seen,
        because any ledger is accepted then.
        """
        with self._changing() as known:
            before = known.get(site)
            if before is None or before.head == START:
                raise UsageError(f"{site}: any ledger of this site is already accepted; this command is not needed")
            record(before.head)
            known[site] = replace(before, entries=START.entries, sha256=START.sha256, accepted_at=_now())
        return before.head

    @contextmanager
    def _changing(self) -> Iterator[dict[str, SeenHead]]:
        if self._path is None:
            yield self._known
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with locked(self._path.with_name(HEADS_LOCK)):
            known = self.known()
            before = dict(known)
            yield known
            if known != before:
                content = {site: asdict(seen) for site, seen in sorted(known.items())}
                write_private(self._path, (json.dumps(content, indent=1) + "\n").encode())


def check_extends(now: LedgerHead | None, recent: str, before: LedgerHead) -> None:
    """Raise `WireError` unless the ledger whose head is `now` contains the head `before`; every ledger has `START`.

    "ledger-rollback": the ledger has fewer entries, or a different entry in the position of `before`. An old copy was
    restored, and may have grown since. "ledger-gap": more entries were added than `recent` covers.
    """
    if before == START:
        return
    added = -1 if now is None else now.entries - before.entries
    place = len(recent) - RECENT_DIGITS * (added + 1)  # position of the entry `before` in `recent`
    if added > 0 and place < 0:
        raise WireError("ledger-gap", f"the site's ledger has {added} new entries, more than its reply contains")
    same = now == before if added == 0 else recent[place:].startswith(before.sha256[:RECENT_DIGITS])
    if added < 0 or not same:
        raise WireError(
            "ledger-rollback", "the site's ledger was replaced by an older copy; the site must restore the newest"
        )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
