"""Checks of a site's folder that need no torch: certificates, server, cohort, ledger, budget, last reply.

`doctor` runs them once, `health` repeatedly.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from wardround.errors import WardroundError, required
from wardround.operations.health import Probe
from wardround.operations.health_checks import Check, clock, days_left, fault, note, ok
from wardround.operations.tls_probe import presented_certificate
from wardround.records.audit_log import AUDIT_FILE, verified
from wardround_client.ledger.ledger import Ledger
from wardround_client.site.config import SiteConfig, load_site_config
from wardround_client.site.enrolment import pinned_ca
from wardround_client.site.paths import COHORT, CONFIG_FILE, LEDGER_FILE
from wardround_client.sources.cohort import SEAL_FILE, open_cohort
from wardround_client.sources.opt_out import opted_out, without_objectors
from wardround_client.sources.study_cohort import differences

ANSWER_TIMEOUT_S = 8.0


def probes_of(folder: Path, registered: Callable[[], Check]) -> list[Probe]:
    """Return the checks that must pass for a site's daemon to be SERVING.

    `registered` checks whether the server has admitted this site.
    """

    def config() -> SiteConfig:
        return load_site_config(folder / CONFIG_FILE)

    return [
        Probe(name="registered", run=registered, todo="ask the operator: wardround-server sites list"),
        Probe(name="clock", run=clock, todo="switch on NTP"),
        Probe(name="CA", run=lambda: ca(folder, config()), todo="ask the operator for the CA"),
        Probe(
            name="server",
            run=lambda: server(folder, config(), ANSWER_TIMEOUT_S),
            todo="check the address in site.toml, DNS, proxy and firewall",
        ),
        Probe(name="data", run=lambda: readable(folder), todo="run wardround-site ingest again"),
        Probe(name="budget", run=lambda: enough(folder, config()), todo="see wardround-site ledger show"),
        Probe(name="last reply", run=lambda: last_reply(folder), todo="see wardround-site audit verify"),
    ]


def readable(folder: Path) -> Check:
    """Check the cohort, and read one of its images from the disk.

    A missing cohort is a fault, because the site cannot train.
    """
    check = cohort(folder)
    if check.state != "ok":
        return fault("data", check.found, check.todo)
    opened = open_cohort(folder / COHORT)
    int(opened.values_N[-1].sum())
    return ok("data", check.found)


def enough(folder: Path, config: SiteConfig) -> Check:
    """Check that budget is left: of the cap for a further study, or in the hold of a running study."""
    check, known = budget(folder, config), opened(folder)
    at_work = known is not None and any(
        hold.released_by is None and any(hold.attempts_left.values()) for hold in known.holds()
    )
    if check.state == "ok":
        return check
    return (
        ok("budget", f"{check.found}; a running study holds the rest")
        if at_work
        else fault("budget", check.found, check.todo)
    )


def last_reply(folder: Path) -> Check:
    """Report the time of the last reply that left this site. The audit log must be intact."""
    path = folder / AUDIT_FILE
    entries = verified(path).entries if path.exists() else ()
    last = next((entry for entry in reversed(entries) if entry["event"] == "released"), None)
    if last is None:
        return ok("last reply", "none yet")
    return ok("last reply", f"{last['at']}, round {last['round']} of run {last['run']}")


def ca(folder: Path, config: SiteConfig) -> Check:
    """Check the validity period of the pinned CA's certificate."""
    pinned = pinned_ca(folder, config)
    todo = "ask the operator for the next CA"
    return days_left("CA", pinned.not_valid_before_utc, pinned.not_valid_after_utc, datetime.now(UTC), todo)


def server(folder: Path, config: SiteConfig, timeout_s: float) -> Check:
    """Check that a TLS handshake with the server's address succeeds against the pinned CA."""
    pem = pinned_ca(folder, config).public_bytes(serialization.Encoding.PEM).decode("ascii")
    connection = required(config.server, "server")
    address, proxy = connection.address, connection.proxy
    shown = x509.load_der_x509_certificate(presented_certificate(address, pem, proxy, timeout_s))
    todo = "ask the operator to renew the server's certificate"
    check = days_left("server", shown.not_valid_before_utc, shown.not_valid_after_utc, datetime.now(UTC), todo)
    return Check(name="server", state=check.state, found=f"{address} answers; {check.found}", todo=check.todo)


def cohort(folder: Path) -> Check:
    """Check the prepared data, without patients who object; missing data are reported as a note."""
    if not (folder / COHORT / SEAL_FILE).exists():
        return note("cohort", "none yet", "wardround-site ingest DIR --study FILE")
    found = without_objectors(open_cohort(folder / COHORT), opted_out(folder))
    return ok("cohort", f"{found.patient_count} patients, {len(found.labels_N)} images")


def studies(folder: Path) -> Check:
    """Check whether the prepared data fit each approved study.

    A study for which the data were not prepared is reported as a note.
    """
    from wardround_client.studies.approvals import known_studies

    if not (folder / COHORT / SEAL_FILE).exists():
        return ok("studies", "no prepared data to compare with the studies")
    prepared = open_cohort(folder / COHORT)
    approved = [one.study for one in known_studies(folder) if one.state == "approved" and one.study is not None]
    found = [f"{one.study.name}: {'; '.join(lines)}" for one in approved if (lines := differences(prepared, one))]
    if found:
        return note("studies", " | ".join(found), "wardround-site ingest DIR --study FILE, with that study's file")
    return ok("studies", "the prepared data fit each approved study")


def opened(folder: Path) -> Ledger | None:
    """Open the site's ledger; return None if no ledger was made yet.

    Raises:
        WardroundError: The ledger is missing although `ledger.head` exists.
        LedgerError: The ledger is damaged or was altered.
    """
    path = folder / LEDGER_FILE
    if path.exists():
        return Ledger(path)
    if path.with_suffix(".head").exists():
        raise WardroundError("ledger.sqlite3 is missing, but ledger.head shows that it existed")
    return None


def ledger(folder: Path) -> Check:
    """Verify the whole ledger, entry by entry."""
    known = opened(folder)
    if known is None:
        return ok("ledger", "none yet; it is created when the first study is admitted")
    return ok("ledger", f"intact, {known.verify().entries} entries")


def budget(folder: Path, config: SiteConfig) -> Check:
    """Report what is left of the cap; an exhausted cap is reported as a note."""
    cap = config.privacy.cap()
    left = (opened(folder) or Ledger(None)).remaining(cap)
    text = f"ε = {left.value:.3g} of {cap.epsilon:g} left, per {left.unit} at δ = {left.delta:g}"
    if left.value <= 0:
        return note("budget", text, "no further study is admitted; `wardround-site ledger show` lists who holds what")
    return ok("budget", text)
