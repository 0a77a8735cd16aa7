"""Recovery of a ledger whose newest copy is lost: continue from an older copy and charge all that may have been spent.

The contents of the lost entries are unknown, but they can have used no more than their runs held. The runs charged are
those of the older copy; those for which the audit log records a reply that left the site (a run without any such reply
has released nothing); and those that a person names, in case the audit log is an old copy as well.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from wardround.errors import UsageError, required
from wardround.records.audit_events import LossAccepted, is_person
from wardround.records.audit_log import AUDIT_FILE, AuditLog, verified
from wardround.records.chain import Witness
from wardround_client.ledger.ledger import Ledger
from wardround_client.privacy.plan import plan_from_study
from wardround_client.site.paths import LEDGER_FILE
from wardround_client.studies.approvals import find_study


@dataclass(frozen=True, kw_only=True)
class Loss:
    """The extent of a loss.

    Attributes:
        seen: Number of entries that the ledger had, as far as is known.
        entries: Number of entries in this copy.
        known: Runs (study, run) of this copy whose remaining budget would be charged in full.
        unknown: Runs (study, run) that are not in this copy and would be charged in full.
    """

    seen: int
    entries: int
    known: tuple[tuple[str, str], ...]
    unknown: tuple[tuple[str, str], ...]


def loss_of(folder: Path, seen_elsewhere: int, named: Iterable[tuple[str, str]]) -> Loss:
    """Determine the loss without charging anything.

    Args:
        folder: The site's folder.
        seen_elsewhere: Number of entries that the server saw; 0 if the server was not asked.
        named: Runs (study, run) that a person names.

    Raises:
        UsageError: There is no sign of a loss, or a run's study is not known here.
        RecordError: The copy or the audit log is damaged.
    """
    path = folder / LEDGER_FILE
    witnessed = Witness(path.with_suffix(".head")).read()
    seen = max(seen_elsewhere, witnessed.entries if witnessed else 0)
    ledger = Ledger(path, lost=True) if path.exists() else Ledger(None)
    entries = ledger.head().entries if path.exists() else 0
    if seen <= entries:
        raise UsageError(
            f"{path}: no sign of a loss: it ends at entry {entries}, and no later one is recorded; if the server saw "
            "more (`wardround-server sites list`), give their number with --entries"
        )
    holds = {(hold.study, hold.run): hold for hold in ledger.holds()}
    asked = [(find_study(folder, study).sha256, run) for study, run in named]
    unknown = sorted({*_released(folder), *asked} - set(holds))
    known = tuple(key for key, hold in holds.items() if hold.released_by is None)
    ledger.close()
    return Loss(seen=seen, entries=entries, known=known, unknown=tuple(unknown))


def _released(folder: Path) -> set[tuple[str, str]]:
    """Return the runs for which the audit log records a reply that left the site."""
    path = folder / AUDIT_FILE
    if not path.exists():
        raise UsageError(f"{path}: is missing as well; put its newest copy back, which records what left this site")
    return {(entry["study"], entry["run"]) for entry in verified(path).entries if entry["event"] == "released"}


def accept_loss(folder: Path, loss: Loss, who: str) -> Ledger:
    """Charge the loss, continue from this copy and return the ledger.

    The audit log records the loss before it takes effect. If the process is killed in between, the ledger still refuses
    to open, and repeating the call completes it.

    Raises:
        UsageError: `who` is not a valid name of a person.
    """
    if not is_person(who):
        raise UsageError(f"--by {who!r}: give the name of a person: letters, spaces and . ' - between them")
    plans = {key: plan_from_study(required(find_study(folder, key[0]).study, "study")) for key in loss.unknown}
    AuditLog(folder / AUDIT_FILE).append(LossAccepted(who=who, count=loss.seen - loss.entries))
    ledger = Ledger(folder / LEDGER_FILE, lost=True)
    ledger.accept_loss(who, plans)
    return ledger
