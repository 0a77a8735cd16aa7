"""What may stand in an audit log: a few kinds of events, each field of which holds one kind of value and nothing else.

A field's name decides what it may hold (`RULES`): a hash, a run, a number, a code, the name of a site or of whoever
decided. There is no field for free text, so there is none that could hold a path, a patient's name or a pseudonym.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from wardround.accounting import Epsilon
from wardround.errors import AuditError
from wardround.printable import is_plain
from wardround.wire.packets import MAX_ROUND
from wardround.wire.protocol import EVALUATE, TRAIN

_SHA256 = re.compile(r"[0-9a-f]{64}")
_RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SITE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_PERSON = re.compile(r"[^\W\d_]+(?:[ .'’-]{1,2}[^\W\d_]+)*\.?")  # letters of any language; no digit, slash or caret
_VERSION = re.compile(r"[0-9]+(\.[0-9a-z]+){1,4}")
_CODE = re.compile(r"[a-z][a-z0-9_:.-]{0,79}")  # a site's own code, and what the server puts before it
_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_ACCOUNTANT = re.compile(r"[A-Za-z][A-Za-z0-9 ,.()-]{0,79}")


def is_person(text: str) -> bool:
    """True for a name that may stand as the one who decided: letters that show, written from left to right, and spaces
    and . ' - between them, up to 64.
    """
    return len(text) <= 64 and bool(_PERSON.fullmatch(text)) and is_plain(text.replace("’", "'"))


def _matches(pattern: re.Pattern[str]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and bool(pattern.fullmatch(value))


def _one_of(*words: str) -> Callable[[Any], bool]:
    return lambda value: value in words


def _count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**53


def _is_epsilon(value: Any) -> bool:
    return (
        type(value) is Epsilon
        and all(type(number) in (int, float) and number >= 0 for number in (value.value, value.delta))
        and bool(_ACCOUNTANT.fullmatch(value.accountant))
        and value.unit == "patient"
        and value.relation == "add or remove one"
    )


RULES: Mapping[str, Callable[[Any], bool]] = {
    "study": _matches(_SHA256),
    "reply": _matches(_SHA256),
    "fingerprint": _matches(_SHA256),
    "sha256": _matches(_SHA256),
    "run": _matches(_RUN),
    "round": lambda value: _count(value) and 1 <= value <= MAX_ROUND,
    "site": _matches(_SITE),
    "who": lambda value: isinstance(value, str) and is_person(value),
    "code": _matches(_CODE),
    "decision": _one_of(
        *("proposed", "approved", "refused", "revoked", "added", "removed"),
        *("submitted", "stopped", "resumed", "finished"),
    ),
    "purpose": _one_of(TRAIN, EVALUATE),
    "again": lambda value: type(value) is bool,
    "count": _count,
    "day": _matches(_DAY),
    "refused": _one_of("message-refused", "not-counted", "released"),
    "runs": lambda value: _count(value) and value >= 1,
    "ledger_entries": _count,
    "ledger_head": _matches(_SHA256),
    "epsilon": _is_epsilon,
    "program": _one_of("wardround-site", "wardround-server"),
    "version": _matches(_VERSION),
}


@dataclass(frozen=True, kw_only=True)
class Event:
    """Base of all events. Raises `AuditError` where a field holds what its name does not allow; the text that was
    refused is not in the message.
    """

    kind: ClassVar[str]

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            optional = field.default is None
            if not (optional and value is None) and not RULES[field.name](value):
                raise AuditError(f"audit: {self.kind}: {field.name} may not hold this; see the rules of audit_events")

    def to_json(self) -> dict[str, Any]:
        """The event as it is written: its kind, and the fields that are set."""
        content: dict[str, Any] = {"event": self.kind}
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None:
                content[field.name] = value.to_json() if isinstance(value, Epsilon) else value
        return content


@dataclass(frozen=True, kw_only=True)
class StudyDecided(Event):
    """Site: a study was approved, refused or revoked, by whom; an approval says for how many runs in all."""

    kind = "study"
    decision: str
    study: str
    who: str
    runs: int | None = None


@dataclass(frozen=True, kw_only=True)
class SiteDecided(Event):
    """Server: a site was added, removed or revoked, by the SHA-256 of its public key."""

    kind = "site"
    decision: str
    site: str
    fingerprint: str
    who: str | None = None


@dataclass(frozen=True, kw_only=True)
class RunDecided(Event):
    """Server: a run was submitted, stopped or resumed, and by whom where that was said; or it finished, with the hash
    of its model's file.
    """

    kind = "run"
    decision: str
    study: str
    run: str
    who: str | None = None
    sha256: str | None = None


@dataclass(frozen=True, kw_only=True)
class SiteSaid(Event):
    """Server: what a site, by its registered key, says it has decided about a study; written where it is new."""

    kind = "said"
    decision: str
    study: str
    run: str
    site: str


@dataclass(frozen=True, kw_only=True)
class ReplyCounted(Event):
    """Server: a site's reply was found good. `reply` is the hash that the site's own log has for what it sent; the
    ledger's head is what the reply said of it, and the next one must not fall behind.
    """

    kind = "counted"
    study: str
    run: str
    round: int
    purpose: str
    site: str
    reply: str
    ledger_entries: int | None = None
    ledger_head: str | None = None


@dataclass(frozen=True, kw_only=True)
class ReplyRefused(Event):
    """Server: a site has no part in a round, and why: it refused or was late, or its reply failed a check."""

    kind = "not-counted"
    study: str
    run: str
    round: int
    purpose: str
    site: str
    code: str


@dataclass(frozen=True, kw_only=True)
class MessageRefused(Event):
    """Site: a message was refused, with the code that the peer was told. `study`, `run`, `round`: if it named them."""

    kind = "message-refused"
    code: str
    study: str | None = None
    run: str | None = None
    round: int | None = None


@dataclass(frozen=True, kw_only=True)
class RefusalsCounted(Event):
    """Refusals, or repeated releases, of one kind on one day (UTC), most of which have no entry of their own: see
    refusal_counts.py.

    `refused`: the kind of event that is counted; "released" with the code "again": replies sent once more. `count`: all
    of that day so far, those with an entry included, so the last such entry of a day and kind holds for it.
    """

    kind = "refusals"
    refused: str
    code: str
    day: str
    count: int
    site: str | None = None


@dataclass(frozen=True, kw_only=True)
class ReplyReleased(Event):
    """Site: a reply is about to leave. `epsilon`: all that this site has spent on its patients, this reply included.

    `again`: the same bytes were asked for once more, which costs nothing.
    """

    kind = "released"
    study: str
    run: str
    round: int
    purpose: str
    reply: str
    epsilon: Epsilon | None = None
    again: bool | None = None


@dataclass(frozen=True, kw_only=True)
class PatientForgotten(Event):
    """A patient objected. `count`: how many have, in all; never who."""

    kind = "forgot"
    count: int


@dataclass(frozen=True, kw_only=True)
class LossAccepted(Event):
    """A ledger goes on from an older copy, whose runs are charged in full. `count`: entries known to be missing."""

    kind = "loss-accepted"
    who: str
    count: int


@dataclass(frozen=True, kw_only=True)
class LedgerAccepted(Event):
    """Server: the next head of a site's ledger counts whatever it is, and who decided that. `ledger_entries` and
    `ledger_head`: the last one that was seen before, which it need not contain.
    """

    kind = "ledger-accepted"
    site: str
    who: str
    ledger_entries: int
    ledger_head: str


@dataclass(frozen=True, kw_only=True)
class Started(Event):
    """A daemon started."""

    kind = "started"
    program: str
    version: str


@dataclass(frozen=True, kw_only=True)
class Stopped(Event):
    """A daemon stopped, and why, as a code."""

    kind = "stopped"
    program: str
    code: str


@dataclass(frozen=True, kw_only=True)
class Torn(Event):
    """A write was cut short: the line before this is no entry. It stays, and its bytes are counted and hashed here."""

    kind = "torn"
    count: int
    sha256: str
