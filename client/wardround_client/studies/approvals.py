"""A site's decisions about studies: proposed, approved, refused or revoked, by whom and when. `store.py` has the files.

An approval states how many runs of the study may ever begin at this site. The ledger counts the runs that did begin
(`Ledger.hold`), so neither a new run name from the server nor a revocation resets the count: only a person can allow
more runs.

An approval is written to the audit log before it takes effect, and a revocation takes effect before it is written to
the log. A kill between the two steps therefore leaves a study that is not trained, and repeating the command completes
the decision.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from wardround.accounting import Event
from wardround.errors import StudyError, UsageError, required
from wardround.printable import is_printable
from wardround.records.audit_events import StudyDecided, is_person
from wardround.records.audit_log import AUDIT_FILE, AuditLog
from wardround.study.describe import Alike
from wardround.study.load import Study
from wardround_client.ledger.ledger import Cap, Ledger, WhatIf
from wardround_client.privacy.plan import plan_from_study
from wardround_client.studies import store
from wardround_client.studies.store import (
    MOST_RUNS,
    add_decision,
    deciding,
    read_decisions,
    runs_approved,
    store_approved,
    store_proposed,
)

SHORTEST_PREFIX = 4
LONGEST_REASON = 500
State = Literal["proposed", "approved", "refused", "revoked", "unreadable"]


@dataclass(frozen=True, kw_only=True)
class KnownStudy:
    """A study that this site has received: its hash, its content, and the decisions about it, oldest first.

    `asker` is the server that asked for it first, if one did and it was stored. If this version cannot read the file
    as a study, `study` is None and `fault` gives the reason in one line.
    """

    sha256: str
    study: Study | None
    state: State
    decisions: tuple[dict[str, Any], ...]
    fault: str | None = None
    asker: store.Asker | None = None

    @property
    def runs(self) -> int:
        """The number of runs of the study that may ever begin at this site, in its current state."""
        return runs_approved(self.decisions) if self.state == "approved" else 0


def received_at(folder: Path, sha256: str) -> str | None:
    """Return when an undecided study was proposed to this site (UTC); None if it was decided or never received."""
    if not store.is_proposed(folder, sha256) or read_decisions(folder, sha256):
        return None
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(store.received_at(folder, sha256)))


def known_studies(folder: Path) -> list[KnownStudy]:
    """Return all studies of this site, sorted by name and hash; those whose file cannot be read come last."""
    found = [_known_or_fault(folder, sha256) for sha256 in store.stored_hashes(folder)]
    return sorted(found, key=lambda one: (one.study is None, one.study.study.name if one.study else "", one.sha256))


def alike(folder: Path, study: Study) -> list[Alike]:
    """Return the other studies of the same name at this site, in the order approved, revoked, refused, proposed."""
    order = ("approved", "revoked", "refused", "proposed")
    sha256 = study.sha256()
    others = [
        one
        for one in known_studies(folder)
        if one.study is not None and one.study.study.name == study.study.name and one.sha256 != sha256
    ]
    others.sort(key=lambda one: order.index(one.state))
    return [Alike(study=required(one.study, "study"), state=one.state) for one in others]


def find_study(folder: Path, prefix: str) -> KnownStudy:
    """Return the study whose hash begins with `prefix`.

    Raises:
        UsageError: No study matches, or more than one. The message is one line.
    """
    if len(prefix) < SHORTEST_PREFIX:
        raise UsageError(f"{prefix}: give at least {SHORTEST_PREFIX} letters of the study's hash")
    hashes = store.stored_hashes(folder, prefix)
    if not hashes:
        raise UsageError(f"{prefix}: no study here has this hash; `wardround-site studies list` shows all studies")
    if len(hashes) > 1:
        raise UsageError(
            f"{prefix}: {len(hashes)} studies match; give more letters: {', '.join(h[:16] for h in hashes)}"
        )
    return _known(folder, hashes[0])


def cost_of(study: Study, ledger: Ledger, cap: Cap, runs: int = 1) -> WhatIf:
    """Return what the study would cost this site if `runs` runs of it may ever begin.

    Runs that have begun are already in the ledger and are not counted again.

    Raises:
        StudyError: No noise multiplier meets the study's privacy promise.
    """
    return ledger.what_if(plan_from_study(study), cap, max(0, runs - ledger.runs_of(study.sha256())))


def promised(folder: Path, ledger: Ledger, besides: str | None = None) -> dict[str, list[Event]]:
    """Return the events of the runs that approvals allow and that have not begun, by the study's hash.

    The ledger does not hold them yet: it does so when such a run begins, if the cap still has room for it. `besides`
    is a study that is left out.

    Raises:
        StudyError: No noise multiplier meets an approved study's privacy promise.
    """
    found: dict[str, list[Event]] = {}
    for one in known_studies(folder):
        if one.study is not None and one.sha256 != besides and (more := one.runs - ledger.runs_of(one.sha256)) > 0:
            found[one.sha256] = [event.repeated(more) for event in plan_from_study(one.study).events()]
    return found


def approve(
    folder: Path, study: Study, who: str, ledger: Ledger, cap: Cap, runs: int = 1, reason: str | None = None
) -> str:
    """Allow `runs` runs of this study in total, including those that have begun. Returns its hash; durable on return.

    `reason` is stored with the decision; it stays at the site, and the audit log, which has no free text, lacks it.

    Raises:
        BudgetRefusal: All these runs together do not fit the remaining cap. Runs that the ledger already holds are not
            counted twice.
        PolicyRefusal: The site's policy does not allow the study.
        UsageError: `who` is not a valid name, `runs` is out of range, or `reason` is too long or cannot be displayed.
    """
    if not 1 <= runs <= MOST_RUNS:
        raise UsageError(f"--runs {runs}: give a number from 1 to {MOST_RUNS}")
    _require_person(who)
    require_reason(reason)
    sha256 = study.sha256()
    refusal = cost_of(study, ledger, cap, runs).refusal
    if refusal is not None:
        raise refusal
    with deciding(folder):
        _record(folder, "approved", sha256, who, runs)
        store_approved(folder, study)
        add_decision(folder, "approved", sha256, who, runs, reason)
        store.remove_proposed(folder, sha256)
    return sha256


def decide_against(
    folder: Path, known: KnownStudy, decision: Literal["refused", "revoked"], who: str, reason: str | None = None
) -> None:
    """Refuse a proposal or revoke an approval; from now on its rounds are refused as `not_approved`.

    The study is kept among the proposals, so that it can be approved later. What was trained stays charged. Repeating
    the decision records it again, which completes a decision that was interrupted by a kill. `reason` is as in
    `approve`.

    Raises:
        UsageError: There is no approval to revoke, or the study to refuse is approved.
    """
    _require_person(who)
    require_reason(reason)
    with deciding(folder):
        _decide_against(folder, _known(folder, known.sha256), decision, who, reason)


def _decide_against(
    folder: Path, known: KnownStudy, decision: Literal["refused", "revoked"], who: str, reason: str | None
) -> None:
    if decision == "revoked" and known.state not in ("approved", "revoked"):
        raise UsageError(f"{known.sha256[:12]}: is {known.state}, not approved; nothing to revoke")
    if decision == "refused" and known.state == "approved":
        raise UsageError(f"{known.sha256[:12]}: is approved; use `wardround-site studies revoke`")
    store_proposed(folder, required(known.study, "study"))
    add_decision(folder, decision, known.sha256, who, None, reason)
    store.remove_approved(folder, known.sha256)
    _record(folder, decision, known.sha256, who)


def _known(folder: Path, sha256: str) -> KnownStudy:
    path, approved = store.stored_path(folder, sha256), store.is_approved(folder, sha256)
    try:
        study = store.read_study(path)
    except (StudyError, UnicodeDecodeError) as error:
        why = error if isinstance(error, StudyError) else f"{path}: is not a text file"
        raise UsageError(f"{why}; this version cannot read such a study; move the file to another folder") from None
    if study.sha256() != sha256:
        raise UsageError(f"{path}: its content does not match its name, so it was altered; put the original back")
    decisions = read_decisions(folder, sha256)
    last = decisions[-1]["decision"] if decisions else None
    if approved:
        state: State = "approved" if last in (None, "approved") else last
    else:
        state = last if last in ("refused", "revoked") else "proposed"
    asker = store.read_asker(folder, sha256)
    return KnownStudy(sha256=sha256, study=study, state=state, decisions=tuple(decisions), asker=asker)


def _known_or_fault(folder: Path, sha256: str) -> KnownStudy:
    try:
        return _known(folder, sha256)
    except UsageError as error:
        return KnownStudy(sha256=sha256, study=None, state="unreadable", decisions=(), fault=str(error))


def _record(folder: Path, decision: str, sha256: str, who: str, runs: int | None = None) -> None:
    AuditLog(folder / AUDIT_FILE).append(StudyDecided(decision=decision, study=sha256, who=who, runs=runs))


def require_reason(reason: str | None) -> None:
    """Raise `UsageError` unless a reason is one line of at most `LONGEST_REASON` characters that can be displayed."""
    if reason is not None and (len(reason) > LONGEST_REASON or not is_printable(reason)):
        raise UsageError(f"the reason: write one line of up to {LONGEST_REASON} characters, without control characters")


def _require_person(who: str) -> None:
    if not is_person(who):
        raise UsageError(f"--by {who!r}: give the name of a person: letters, spaces and . ' - between them")
