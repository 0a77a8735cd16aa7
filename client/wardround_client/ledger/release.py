"""Giving back what a run holds and has not used: one decision of a person, in the audit log and in the ledger."""

from __future__ import annotations

from pathlib import Path

from wardround.errors import UsageError
from wardround.records.audit_events import BudgetReleased, is_person
from wardround.records.audit_log import AUDIT_FILE, AuditLog
from wardround_client.ledger.book import Hold
from wardround_client.ledger.ledger import Ledger


def release_hold(folder: Path, ledger: Ledger, study: str, run: str, who: str) -> Hold:
    """Give back the unused part of what a run holds, and return the hold. A repeated call changes nothing.

    The audit log records it before it takes effect, because the budget that becomes free may be spent by others. A
    name that is no person's, such as a system account's, is in the ledger only.

    Raises:
        UsageError: The run holds nothing, and never did.
    """
    known = next((hold for hold in ledger.holds() if (hold.study, hold.run) == (study, run)), None)
    if known is None:
        raise UsageError(f"{folder}: a run {run} of the study {study[:12]} holds nothing here")
    if known.released_by is not None:
        return known
    person = who if is_person(who) else None
    AuditLog(folder / AUDIT_FILE).append(BudgetReleased(study=study, run=run, who=person))
    return ledger.release(study, run, who)
