"""What a person decides about a site: to end its admission, or to accept another ledger. The audit log has each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from wardround.errors import UsageError
from wardround.records.audit_events import LedgerAccepted, SiteDecided
from wardround.records.audit_log import AUDIT_FILE, AuditLog
from wardround.wire.packets import LedgerHead
from wardround_server.sites.ledger_heads import LedgerHeads
from wardround_server.sites.registry import EnrolledSite, Registry


def end_site(server: Path, name: str, how: Literal["removed", "revoked"], by: str | None) -> EnrolledSite:
    """Refuse a site's key permanently, and return the site. Raises `UsageError` if no such site is enrolled."""
    site = Registry(server).end(name, how)
    recorder(server, how, by)(site)  # recorded afterwards, so that a full disk cannot keep a stolen key enrolled
    return site


def accept_ledger(server: Path, name: str, by: str) -> LedgerHead:
    """Accept any ledger in a site's next reply, and return the last head seen.

    Raises `UsageError` if the site is not enrolled, or no head of its ledger was seen.
    """
    require_enrolled(server, name)

    def record(before: LedgerHead) -> None:
        event = LedgerAccepted(site=name, who=by, ledger_entries=before.entries, ledger_head=before.sha256)
        AuditLog(server / AUDIT_FILE).append(event)

    return LedgerHeads(server).accept(name, record)


def require_enrolled(server: Path, name: str) -> None:
    """Raise `UsageError` unless a site of this name is enrolled."""
    if name not in [site.name for site in Registry(server).sites()]:
        raise UsageError(f"{name}: no such site is enrolled; `wardround-server sites list` lists the enrolled ones")


def recorder(server: Path, decision: str, by: str | None) -> Callable[[EnrolledSite], object]:
    """Return a function that records a decision about a site in the audit log."""

    def record(site: EnrolledSite) -> None:
        event = SiteDecided(decision=decision, site=site.name, fingerprint=site.fingerprint, who=by)
        AuditLog(server / AUDIT_FILE).append(event)

    return record
