"""The ledger's state: holds and attempts, computed from the entries in their order.

This module is pure: it uses no file, no clock and no epsilon. Every process that opens a ledger reads all its entries
through `Book.fold`, which rejects an entry that contradicts earlier ones. The kinds of entries:

    opened    a secret number, so that no two ledgers have the same chain
    hold      a study's whole budget for one run, by purpose: a number of attempts, each of which is one event
    attempt   one event charged to a hold, durable before any patient's data are read
    settled   the hash of an attempt's reply, durable before the reply is sent
    released  the unused part of a hold is given back; the used part stays charged
    lost      later entries are lost permanently: the rest of every hold is charged, and no hold is used again
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from wardround.accounting import Event, GaussianEvent, PureEvent
from wardround.errors import LedgerError
from wardround.storage.json_numbers import number_of_json
from wardround_client.privacy.plan import Share

_KINDS_OF_EVENTS: dict[str, type[GaussianEvent] | type[PureEvent]] = {"gaussian": GaussianEvent, "pure": PureEvent}


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One attempt: the request that was received and, once it is settled, the hash of the reply."""

    id: int
    study: str
    run: str
    round: int
    weights: str
    purpose: str
    reply_sha256: str | None


@dataclass(frozen=True, kw_only=True)
class Hold:
    """One run's budget, by purpose: the part that was set aside and the part that was used.

    After a loss, all of the budget counts as used.
    """

    study: str
    run: str
    shares: Mapping[str, Share]
    used: Mapping[str, int]
    settled: Mapping[str, int]
    released_by: str | None

    @property
    def attempts_left(self) -> Mapping[str, int]:
        """The number of attempts that may still be made, by purpose; 0 once the hold was released."""
        return {
            purpose: 0 if self.released_by is not None else share.attempts - self.used[purpose]
            for purpose, share in self.shares.items()
        }

    def spent(self, purpose: str | None = None) -> list[Event]:
        """Return the events of all attempts made, or those of one purpose."""
        chosen = [name for name in self.shares if purpose in (None, name)]
        return [event for name in chosen for event in self.shares[name].events(self.used[name])]

    def committed(self) -> list[Event]:
        """Return the events of all attempts made and of all that may still be made."""
        left = self.attempts_left
        return [event for name, share in self.shares.items() for event in share.events(self.used[name] + left[name])]


class Book:
    """Holds by run and attempts by number, according to the entries folded so far."""

    def __init__(self) -> None:
        self.holds: dict[tuple[str, str], Hold] = {}
        self.attempts: dict[int, Attempt] = {}
        self._of_run: dict[tuple[str, str], list[int]] = {}
        self._last_attempt = 0
        self._kinds: dict[str, Callable[[dict[str, Any]], None]] = {
            "opened": lambda entry: None,
            "hold": self._fold_hold,
            "attempt": self._fold_attempt,
            "settled": self._fold_settled,
            "released": self._fold_released,
            "lost": self._fold_lost,
        }

    @property
    def next_attempt(self) -> int:
        """The number of the next attempt."""
        return self._last_attempt + 1

    def attempts_of(self, study: str, run: str) -> list[Attempt]:
        """Return the attempts of one run in their order."""
        return [self.attempts[number] for number in self._of_run.get((study, run), [])]

    def runs_of(self, study: str) -> int:
        """Return the number of runs of this study that hold a budget or once held one."""
        return sum(held == study for held, _ in self.holds)

    def hold_of(self, study: str, run: str) -> Hold:
        """Return the hold of a run. Raise `LedgerError` if no budget is held for this run."""
        hold = self.holds.get((study, run))
        if hold is None:
            raise LedgerError("no budget is held for this run")
        return hold

    def fold(self, entry: dict[str, Any]) -> None:
        """Apply the next entry.

        Raises:
            LedgerError: The entry is of an unknown kind, is malformed or contradicts earlier entries.
        """
        fold = self._kinds.get(entry.get("kind", ""))
        if fold is None:
            raise LedgerError(f"unknown kind of entry {entry.get('kind')!r}; upgrade wardround")
        try:
            fold(entry)
        except (KeyError, TypeError, ValueError) as error:
            raise LedgerError(f"an entry of kind {entry['kind']} is malformed ({type(error).__name__})") from None

    def _fold_hold(self, entry: dict[str, Any]) -> None:
        key = entry["study"], entry["run"]
        if key in self.holds:
            raise LedgerError("the budget of one run is held twice")
        shares = {purpose: share_from_json(share) for purpose, share in entry["shares"].items()}
        none = dict.fromkeys(shares, 0)
        self.holds[key] = Hold(study=key[0], run=key[1], shares=shares, used=none, settled=dict(none), released_by=None)

    def _fold_attempt(self, entry: dict[str, Any]) -> None:
        attempt = Attempt(**{name: entry[name] for name in _WRITTEN}, reply_sha256=None)
        hold = self.hold_of(attempt.study, attempt.run)
        if attempt.id <= self._last_attempt or hold.attempts_left.get(attempt.purpose, 0) < 1:
            raise LedgerError(f"attempt {attempt.id} exceeds the attempts that its run holds, or is out of order")
        used = {**hold.used, attempt.purpose: hold.used[attempt.purpose] + 1}
        self.holds[attempt.study, attempt.run] = replace(hold, used=used)
        self.attempts[attempt.id] = attempt
        self._of_run.setdefault((attempt.study, attempt.run), []).append(attempt.id)
        self._last_attempt = attempt.id

    def _fold_settled(self, entry: dict[str, Any]) -> None:
        attempt = self.attempts.get(entry["id"])
        if attempt is None or attempt.reply_sha256 is not None:
            raise LedgerError(f"attempt {entry['id']} is settled twice, or was never recorded")
        self.attempts[attempt.id] = replace(attempt, reply_sha256=str(entry["reply_sha256"]))
        hold = self.hold_of(attempt.study, attempt.run)
        settled = {**hold.settled, attempt.purpose: hold.settled[attempt.purpose] + 1}
        self.holds[attempt.study, attempt.run] = replace(hold, settled=settled)

    def _fold_released(self, entry: dict[str, Any]) -> None:
        hold = self.hold_of(entry["study"], entry["run"])
        if hold.released_by is not None:
            raise LedgerError("a hold is released twice")
        self.holds[hold.study, hold.run] = replace(hold, released_by=str(entry["who"]))

    def _fold_lost(self, entry: dict[str, Any]) -> None:
        for key, hold in self.holds.items():
            if hold.released_by is None:
                all_of_it = {purpose: share.attempts for purpose, share in hold.shares.items()}
                self.holds[key] = replace(hold, used=all_of_it, released_by=str(entry["who"]))


_WRITTEN = ("id", "study", "run", "round", "weights", "purpose")


def share_to_json(share: Share) -> dict[str, Any]:
    """Return a share in the form in which an entry stores it."""
    (kind,) = [name for name, kind in _KINDS_OF_EVENTS.items() if type(share.event) is kind]
    return {"attempts": share.attempts, "event": {"kind": kind, **asdict(share.event)}}


def share_from_json(content: dict[str, Any]) -> Share:
    """Read a share from its JSON form, the inverse of `share_to_json`.

    Raises:
        KeyError, TypeError: The content is not a share.
        WardroundError: The event is impossible.
    """
    fields = dict(content["event"])
    kind = _KINDS_OF_EVENTS[fields.pop("kind")]
    numbers = {name: number_of_json(value) for name, value in fields.items()}
    return Share(attempts=int(content["attempts"]), event=kind(**numbers))
