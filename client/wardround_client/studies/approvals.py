"""What a site decides about studies: proposed, approved, refused, revoked; by whom and when. The files: `store.py`.

An approval names how many runs of the study may ever begin here. The ledger counts those that did (`Ledger.hold`), so
that neither a name that the server makes up nor a revocation starts the count anew: only a person allows more.

An approval is in the audit log before it has an effect, a revocation has its effect before it is in the log: a kill
between the two leaves a study that is not trained, and the same command finishes.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from wardround.errors import StudyError, UsageError, required
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
State = Literal["proposed", "approved", "refused", "revoked", "unreadable"]


@dataclass(frozen=True, kw_only=True)
class KnownStudy:
    """A study this site has heard of: its hash, what it says, and what was decided, oldest first.

    Where its file is no study that this version knows, `study` is None and `fault` says why, in one line.
    """

    sha256: str
    study: Study | None
    state: State
    decisions: tuple[dict[str, Any], ...]
    fault: str | None = None

    @property
    def runs(self) -> int:
        """How many runs of it may ever begin here, as it is now."""
        return runs_approved(self.decisions) if self.state == "approved" else 0


def received_at(folder: Path, sha256: str) -> str | None:
    """When an undecided study was put before this site (UTC); None where it was decided, or never received."""
    if not store.is_proposed(folder, sha256) or read_decisions(folder, sha256):
        return None
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(store.received_at(folder, sha256)))


def known_studies(folder: Path) -> list[KnownStudy]:
    """All studies of this site by name and hash, those whose file cannot be read at the end."""
    found = [_known_or_fault(folder, sha256) for sha256 in store.stored_hashes(folder)]
    return sorted(found, key=lambda one: (one.study is None, one.study.study.name if one.study else "", one.sha256))


def alike(folder: Path, study: Study) -> list[Alike]:
    """The other studies of the same name here: approved ones first, then revoked, refused and proposed ones."""
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
    """The one study whose hash begins so. Raises `UsageError` in one line where there is none, or more than one."""
    if len(prefix) < SHORTEST_PREFIX:
        raise UsageError(f"{prefix}: give at least {SHORTEST_PREFIX} letters of the study's hash")
    hashes = store.stored_hashes(folder, prefix)
    if not hashes:
        raise UsageError(f"{prefix}: no study has this hash here; `wardround-site studies list` shows those it has")
    if len(hashes) > 1:
        raise UsageError(
            f"{prefix}: {len(hashes)} studies begin so; give more letters: {', '.join(h[:16] for h in hashes)}"
        )
    return _known(folder, hashes[0])


def cost_of(study: Study, ledger: Ledger, cap: Cap, runs: int = 1) -> WhatIf:
    """What the study would cost this site if `runs` runs of it may ever begin: those that did are in the ledger
    already. Raises `StudyError` where no noise keeps its promise.
    """
    return ledger.what_if(plan_from_study(study), cap, max(0, runs - ledger.runs_of(study.sha256())))


def approve(folder: Path, study: Study, who: str, ledger: Ledger, cap: Cap, runs: int = 1) -> str:
    """Let `runs` runs of this study be trained here in all, those that began included; returns its hash. Durable on
    return.

    Raises `BudgetRefusal` or `PolicyRefusal` where all these runs together do not fit what is left of the cap (those
    that the ledger holds already are not counted twice), and `UsageError` for a name or a number that is none.
    """
    if not 1 <= runs <= MOST_RUNS:
        raise UsageError(f"--runs {runs}: give a number from 1 to {MOST_RUNS}")
    _require_person(who)
    sha256 = study.sha256()
    refusal = cost_of(study, ledger, cap, runs).refusal
    if refusal is not None:
        raise refusal
    with deciding(folder):
        _record(folder, "approved", sha256, who, runs)
        store_approved(folder, study)
        add_decision(folder, "approved", sha256, who, runs)
        store.remove_proposed(folder, sha256)
    return sha256


def decide_against(folder: Path, known: KnownStudy, decision: Literal["refused", "revoked"], who: str) -> None:
    """Refuse a proposal, or revoke an approval: from now on rounds are refused as `not_approved`.

    The study stays among the proposals, so that it can be approved later. What was trained stays charged. Asked again
    it is written down again, which finishes what a kill cut off. Raises `UsageError` where there is nothing to revoke,
    or where a refusal comes after the approval.
    """
    _require_person(who)
    with deciding(folder):
        _decide_against(folder, _known(folder, known.sha256), decision, who)


def _decide_against(folder: Path, known: KnownStudy, decision: Literal["refused", "revoked"], who: str) -> None:
    if decision == "revoked" and known.state not in ("approved", "revoked"):
        raise UsageError(f"{known.sha256[:12]}: is {known.state}, not approved; nothing to revoke")
    if decision == "refused" and known.state == "approved":
        raise UsageError(f"{known.sha256[:12]}: is approved; use `wardround-site studies revoke`")
    store_proposed(folder, required(known.study, "study"))
    add_decision(folder, decision, known.sha256, who)
    store.remove_approved(folder, known.sha256)
    _record(folder, decision, known.sha256, who)


def _known(folder: Path, sha256: str) -> KnownStudy:
    path, approved = store.stored_path(folder, sha256), store.is_approved(folder, sha256)
    try:
        study = store.read_study(path)
    except (StudyError, UnicodeDecodeError) as error:
        why = error if isinstance(error, StudyError) else f"{path}: is no text"
        raise UsageError(f"{why}; this version does not take such a study: remove the file") from None
    if study.sha256() != sha256:
        raise UsageError(f"{path}: is not the study that its name says; it was altered, put the original back")
    decisions = read_decisions(folder, sha256)
    last = decisions[-1]["decision"] if decisions else None
    if approved:
        state: State = "approved" if last in (None, "approved") else last
    else:
        state = last if last in ("refused", "revoked") else "proposed"
    return KnownStudy(sha256=sha256, study=study, state=state, decisions=tuple(decisions))


def _known_or_fault(folder: Path, sha256: str) -> KnownStudy:
    try:
        return _known(folder, sha256)
    except UsageError as error:
        return KnownStudy(sha256=sha256, study=None, state="unreadable", decisions=(), fault=str(error))


def _record(folder: Path, decision: str, sha256: str, who: str, runs: int | None = None) -> None:
    AuditLog(folder / AUDIT_FILE).append(StudyDecided(decision=decision, study=sha256, who=who, runs=runs))


def _require_person(who: str) -> None:
    if not is_person(who):
        raise UsageError(f"--by {who!r}: give the name of a person: letters, spaces and . ' - between them")
