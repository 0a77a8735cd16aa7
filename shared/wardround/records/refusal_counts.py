"""Daily counts of refused messages, refused replies and repeated replies, so that a flood leaves a bounded audit log.

A request for a reply that was released before counts as an event with the code `again`; the first release is always an
entry of its own. For each kind (event, code, site) the first `IN_FULL` events of a day (UTC) are entries of their own.
Later ones are counted in `audit.refused` beside the log. Each time a count has grown tenfold, it is written to the log
as a summary entry, which makes at most `IN_FULL` + 15 entries per kind and day. The rest of a day is written to the log
with the first entry of a later day, of whatever kind. A peer can choose its codes, so the number of kinds is bounded
too: the codes of one event and site beyond `MOST_CODES` are counted as "other".

A count is durable before `append` returns, so a kill loses no event that was reported as recorded. The file is not part
of a chain: whoever can write to it can change a count that is not in the log yet, which is less than nine tenths of the
count.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from wardround.errors import AuditError, UsageError
from wardround.records.audit_events import Event, MessageRefused, RefusalsCounted, ReplyRefused, ReplyReleased
from wardround.storage.atomic import write_private
from wardround.storage.disk_errors import cause

IN_FULL = 20
MOST_CODES = 40
OTHER, AGAIN = "other", "again"

Counted = MessageRefused | ReplyRefused | ReplyReleased
Kind = tuple[str, str, str]  # the kind of event, its code, the site or ""


@dataclass(kw_only=True)
class RefusalCounts:
    """The refusals and repeated releases of one day, by kind."""

    day: str
    counts: dict[Kind, int] = field(default_factory=dict)
    logged: dict[Kind, int] = field(default_factory=dict)  # how many of them are in the log, in full or in a summary

    def entries_of(self, event: Counted) -> list[Event]:
        """Count an event that `is_counted`, and return the entries that the log needs because of it."""
        kind = self._kind_of(event)
        count = self.counts[kind] = self.counts.get(kind, 0) + 1
        if count <= IN_FULL and kind[1] != OTHER:
            self.logged[kind] = count
            return [event]
        return [self._summary(kind)] if count >= 10 * self.logged.get(kind, 0) else []

    def rest(self) -> list[Event]:
        """Return summaries of all counts that are not in the log yet."""
        return [self._summary(kind) for kind, count in self.counts.items() if count > self.logged.get(kind, 0)]

    def _summary(self, kind: Kind) -> Event:
        self.logged[kind] = self.counts[kind]
        name, code, site = kind
        return RefusalsCounted(refused=name, code=code, site=site or None, day=self.day, count=self.counts[kind])

    def _kind_of(self, event: Counted) -> Kind:
        if isinstance(event, ReplyReleased):
            return (event.kind, AGAIN, "")
        site = event.site if isinstance(event, ReplyRefused) else ""
        kind = (event.kind, event.code, site)
        codes = sum(1 for name, _, of in self.counts if (name, of) == (event.kind, site))
        return kind if kind in self.counts or codes < MOST_CODES else (event.kind, OTHER, site)


def is_counted(event: Event) -> TypeGuard[Counted]:
    """Whether many such events on one day are summarised: refusals, and repeated releases of a reply."""
    return isinstance(event, (MessageRefused, ReplyRefused)) or (isinstance(event, ReplyReleased) and bool(event.again))


class RefusalFile:
    """The counts of the current day, stored beside the log. Use it while holding the log's lock."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._counts: RefusalCounts | None = None
        self._changed = False

    def entries_of(self, event: Event, day: str) -> list[Event]:
        """Return the entries that the log needs because of `event`, after the summaries of a day that has ended.

        For an event that `is_counted`, that is the event itself, a summary or nothing; otherwise it is the event
        itself. Call `keep` once these entries are in the log.
        """
        counts, entries = self.read(), []
        self._changed = is_counted(event)
        if counts is not None and counts.day < day:  # a clock that is set back must not restart a day
            entries, counts, self._changed = counts.rest(), None, True
        if is_counted(event):
            counts = counts or RefusalCounts(day=day)
            entries += counts.entries_of(event)
        else:
            entries.append(event)
        self._counts = counts
        return entries

    def keep(self) -> None:
        """Replace the file if the last `entries_of` changed a count; durable on return."""
        if not self._changed:
            return
        if self._counts is None:
            self._path.unlink(missing_ok=True)
            return
        counts = self._counts
        rows = [[*kind, count, counts.logged.get(kind, 0)] for kind, count in counts.counts.items()]
        try:
            write_private(self._path, (json.dumps({"day": counts.day, "counts": rows}) + "\n").encode())
        except UsageError as error:
            raise AuditError(f"{error}; free some space") from None

    def read(self) -> RefusalCounts | None:
        """Return the counts stored on disk; None if there are none. Raises `AuditError` if they are damaged."""
        try:
            content: Any = json.loads(self._path.read_bytes())
            rows = [((str(name), str(code), str(site)), int(n), int(m)) for name, code, site, n, m in content["counts"]]
            return RefusalCounts(
                day=str(content["day"]),
                counts={kind: count for kind, count, _ in rows},
                logged={kind: logged for kind, _, logged in rows},
            )
        except FileNotFoundError:
            return None
        except OSError as error:
            raise AuditError(f"{self._path}: cannot be read: {cause(error)}") from None
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
            raise AuditError(
                f"{self._path}: damaged; move it to another folder: the log is not affected, but the refusals of that "
                "day that were only counted are missing from it"
            ) from None


def only_counted(log: Path) -> int:
    """Return the number of refusals and repeated releases that are not in the log, in full or in a summary."""
    counts = RefusalFile(log.with_suffix(".refused")).read()
    return 0 if counts is None else sum(counts.counts[kind] - counts.logged.get(kind, 0) for kind in counts.counts)
