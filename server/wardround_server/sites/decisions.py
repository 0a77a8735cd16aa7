"""What a person decides about a site: to admit it, to end that, or to accept another ledger. The audit log has each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from wardround.errors import UsageError
from wardround.identity import EnrolmentRequest, typed_fingerprint
from wardround.records.audit_events import LedgerAccepted, SiteDecided
from wardround.records.audit_log import AUDIT_FILE, AuditLog
from wardround.wire.packets import LedgerHead
from wardround_server.sites.certificates import check_site_key
from wardround_server.sites.ledger_heads import LedgerHeads
from wardround_server.sites.registry import EnrolledSite, Registry


def add_site(server: Path, asked: EnrolmentRequest, name: str | None, by: str | None) -> EnrolledSite:
    """Enrol the site of a request under its own or another name, after a person compared its key's fingerprint.

    Raises `UsageError` if the key is not valid, or the key or the name is in use.
    """
    check_site_key(asked.public_key)
    return Registry(server).add(name or asked.name, asked.public_key, recorder(server, "added", by))


def require_fingerprint(asked: EnrolmentRequest, typed: str, source: str) -> None:
    """Raise `UsageError` unless the fingerprint that the site read out by telephone is that of the request's key."""
    if typed_fingerprint(typed) != asked.fingerprint:
        raise UsageError(
            f"{source}: its key's fingerprint differs from the one read out by telephone; do not enrol it, "
            "ask the site for a new request"
        )


def end_site(server: Path, name: str, how: Literal["removed", "revoked"], by: str | None) -> EnrolledSite:
    """Refuse a site's key permanently, and return the site. Raises `UsageError` if no such site is enrolled."""
    site = Registry(server).end(name, how)
    recorder(server, how, by)(site)  # recorded afterwards, so that a full disk cannot keep a stolen key enrolled
    return site


def accept_ledger(server: Path, name: str, by: str, expected: str | None = None) -> LedgerHead:
    """Accept any ledger in a site's next reply, and return the last head seen.

    Args:
        server: The server's folder.
        name: The site.
        by: Who decides.
        expected: The last head as the person saw it, hex; None: whatever it is.

    Raises:
        UsageError: The site is not enrolled, no head of its ledger was seen, or it is another one than `expected`.
    """
    require_enrolled(server, name)

    def record(before: LedgerHead) -> None:
        if expected is not None and before.sha256 != expected:
            raise UsageError(f"{name}: its ledger has changed since you looked; look again, and decide anew")
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
