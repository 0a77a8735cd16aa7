"""A ledger whose newest copy is gone for good: going on from an older one, with all that may have been spent charged.

What the lost entries were nobody can say, but they can have used no more than their runs held. The runs are those of
the older copy; those of which the audit log has a reply that left (a run of which none did has told nobody anything);
and those that a person names, for a log that is an old copy as well.
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
    """What is missing: how far the ledger had come, as far as anybody knows, where this copy ends, and the runs (study,
    run) that would be charged in full: those it has, with something left, and those it knows nothing of.
    """

    seen: int
    entries: int
    known: tuple[tuple[str, str], ...]
    unknown: tuple[tuple[str, str], ...]


def loss_of(folder: Path, seen_elsewhere: int, named: Iterable[tuple[str, str]]) -> Loss:
    """Look at the loss; nothing is charged. `seen_elsewhere`: the entries that the server saw, 0 where nobody asked it.

    Raises `UsageError` where nothing shows a loss, or a run's study is not known here, and `RecordError` where the copy
    or the audit log is damaged.
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
    """The runs of which a reply left, as the audit log has them."""
    path = folder / AUDIT_FILE
    if not path.exists():
        raise UsageError(f"{path}: is missing as well; put its newest copy back, which records what left this site")
    return {(entry["study"], entry["run"]) for entry in verified(path).entries if entry["event"] == "released"}


def accept_loss(folder: Path, loss: Loss, who: str) -> Ledger:
    """Charge the loss and go on from this copy; the ledger. In the audit log before it has an effect; where a kill
    comes between, the ledger still refuses to open, and the same call finishes. Raises `UsageError` for a name that is
    none.
    """
    if not is_person(who):
        raise UsageError(f"--by {who!r}: give the name of a person: letters, spaces and . ' - between them")
    plans = {key: plan_from_study(required(find_study(folder, key[0]).study, "study")) for key in loss.unknown}
    AuditLog(folder / AUDIT_FILE).append(LossAccepted(who=who, count=loss.seen - loss.entries))
    ledger = Ledger(folder / LEDGER_FILE, lost=True)
    ledger.accept_loss(who, plans)
    return ledger
