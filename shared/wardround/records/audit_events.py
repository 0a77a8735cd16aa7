"""The kinds of events in an audit log. Each field of an event accepts one kind of value only.

A field's name determines what it may contain (`RULES`): a hash, a run, a number, a code, a site, or the person who
decided. There is no free-text field, so no field could contain a path, a patient's name or a pseudonym.
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
_CODE = re.compile(r"[a-z][a-z0-9_:.-]{0,79}")  # a site's own code, with the prefix that the server adds
_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_ACCOUNTANT = re.compile(r"[A-Za-z][A-Za-z0-9 ,.()-]{0,79}")


def is_person(text: str) -> bool:
    """Whether the text is a valid name for the person who decided.

    A name has up to 64 characters: visible letters written from left to right, with spaces and . ' - between them.
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
        *("submitted", "stopped", "resumed", "finished", "exported", "exported-unsafe"),
    ),
    "action": _one_of("signed-in", "signed-out", "user-added", "user-changed", "user-removed"),
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
    """Base class of all events.

    Raises:
        AuditError: A field has a value that its rule does not allow. The message does not contain the refused value.
    """

    kind: ClassVar[str]

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            optional = field.default is None
            if not (optional and value is None) and not RULES[field.name](value):
                raise AuditError(
                    f"audit: {self.kind}: {field.name} has a value that is not allowed; see audit_events.py"
                )

    def to_json(self) -> dict[str, Any]:
        """Return the event as it is written: its kind, and the fields that are set."""
        content: dict[str, Any] = {"event": self.kind}
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None:
                content[field.name] = value.to_json() if isinstance(value, Epsilon) else value
        return content


@dataclass(frozen=True, kw_only=True)
class StudyDecided(Event):
    """Site: a person approved, refused or revoked a study. An approval gives the total number of runs."""

    kind = "study"
    decision: str
    study: str
    who: str
    runs: int | None = None


@dataclass(frozen=True, kw_only=True)
class SiteDecided(Event):
    """Server: a site was added, removed or revoked. `fingerprint` is the SHA-256 of its public key."""

    kind = "site"
    decision: str
    site: str
    fingerprint: str
    who: str | None = None


@dataclass(frozen=True, kw_only=True)
class RunDecided(Event):
    """Server: a run was submitted, stopped, resumed or finished, or its model was exported.

    `who` is the person who decided, if given. A finished run and an export have the hash of the model's file.
    "exported-unsafe" is an export that was forced although the release gate was closed.
    """

    kind = "run"
    decision: str
    study: str
    run: str
    who: str | None = None
    sha256: str | None = None


@dataclass(frozen=True, kw_only=True)
class SiteReplied(Event):
    """Server: a site, identified by its registered key, reported its decision about a study; recorded if it is new."""

    kind = "said"
    decision: str
    study: str
    run: str
    site: str


@dataclass(frozen=True, kw_only=True)
class ReplyCounted(Event):
    """Server: a site's reply passed the checks and was counted.

    `reply` is the hash that the site's own log has for the reply it sent. The ledger's head is the one stated in the
    reply; the next reply's head must not be older.
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
    """Server: a site is not counted in a round, with the reason.

    The site refused or was late, or its reply failed a check.
    """

    kind = "not-counted"
    study: str
    run: str
    round: int
    purpose: str
    site: str
    code: str


@dataclass(frozen=True, kw_only=True)
class MessageRefused(Event):
    """Site: a message was refused, with the code sent to the peer.

    `study`, `run` and `round` are set if the message named them.
    """

    kind = "message-refused"
    code: str
    study: str | None = None
    run: str | None = None
    round: int | None = None


@dataclass(frozen=True, kw_only=True)
class RefusalsCounted(Event):
    """The refusals, or repeated releases, of one kind on one day (UTC), most of which have no entry of their own.

    See refusal_counts.py. `refused` is the kind of event that is counted; "released" with the code "again" means
    replies that were sent once more. `count` is the total of that day so far, including those with an entry, so the
    last such entry of a day and kind is the valid one.
    """

    kind = "refusals"
    refused: str
    code: str
    day: str
    count: int
    site: str | None = None


@dataclass(frozen=True, kw_only=True)
class ReplyReleased(Event):
    """Site: a reply is about to be sent.

    `epsilon` is everything that this site has spent on its patients, including this reply. `again` means that the same
    bytes were requested once more, which costs nothing.
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
class ModelPersonalised(Event):
    """Site: a released model was trained further on this site's patients, and the result is kept here.

    `sha256` is the hash of its weights, as in the ledger; `epsilon` is everything that this site has spent. `again`
    means that the model was trained earlier and was asked for once more, which costs nothing.
    """

    kind = "personalised"
    study: str
    run: str
    sha256: str
    epsilon: Epsilon | None = None
    again: bool | None = None


@dataclass(frozen=True, kw_only=True)
class PatientForgotten(Event):
    """Site: a patient objected. `count` is the total number of objections; the event does not identify the patient."""

    kind = "forgot"
    count: int


@dataclass(frozen=True, kw_only=True)
class LossAccepted(Event):
    """Site: the ledger continues from an older copy, whose runs are charged in full.

    `count` is the number of entries known to be missing.
    """

    kind = "loss-accepted"
    who: str
    count: int


@dataclass(frozen=True, kw_only=True)
class BudgetReleased(Event):
    """Site: a person gave back what a run held and had not used; the run can no longer train here."""

    kind = "budget-released"
    study: str
    run: str
    who: str | None = None


@dataclass(frozen=True, kw_only=True)
class LedgerAccepted(Event):
    """Server: a person decided that the next head of a site's ledger is accepted, whatever it is.

    `ledger_entries` and `ledger_head` describe the last head seen before, which the new ledger need not contain.
    """

    kind = "ledger-accepted"
    site: str
    who: str
    ledger_entries: int
    ledger_head: str


@dataclass(frozen=True, kw_only=True)
class ConsoleUsed(Event):
    """Both: a person signed in to the web console or out, or their account there was added, changed or removed.

    What they decide at the console has the same entries as on the command line.
    """

    kind = "console"
    action: str
    who: str


@dataclass(frozen=True, kw_only=True)
class Started(Event):
    """A daemon started."""

    kind = "started"
    program: str
    version: str


@dataclass(frozen=True, kw_only=True)
class Stopped(Event):
    """A daemon stopped; `code` is the reason."""

    kind = "stopped"
    program: str
    code: str


@dataclass(frozen=True, kw_only=True)
class Torn(Event):
    """A write was cut short, and the bytes before this line are not an entry.

    The bytes stay in the log; this entry has their number and hash.
    """

    kind = "torn"
    count: int
    sha256: str
