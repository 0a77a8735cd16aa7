"""A site's status on one page: studies, last round, budget, cohort, objections and the daemon, if it is running.

Counts of patients are for the hospital alone: nothing on this page is ever sent.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from wardround.errors import WardroundError
from wardround.operations.health import asked
from wardround.records.audit_log import AUDIT_FILE, verified
from wardround.storage.json_numbers import json_number
from wardround_client.ledger.ledger import Ledger
from wardround_client.site.checks import ca
from wardround_client.site.config import load_site_config
from wardround_client.site.paths import COHORT, CONFIG_FILE
from wardround_client.sources.cohort import open_cohort
from wardround_client.sources.opt_out import opted_out
from wardround_client.studies.approvals import known_studies

ANSWER_TIMEOUT_S = 3.0


def status_of(folder: Path, ledger: Ledger) -> dict[str, Any]:
    """Return the page as plain JSON.

    A part that cannot be read contains the error under `fault`; the other parts are still shown.

    Raises:
        UsageError: `site.toml` cannot be read, so the folder is not a site.
    """
    config = load_site_config(folder / CONFIG_FILE)
    cap = config.privacy.cap()
    return {
        "site": config.name,
        "studies": _part(lambda: {"known": [_study(one) for one in known_studies(folder)]}),
        "last_release": _part(lambda: {"entry": _last(folder, "released")}),
        "last_refusal": _part(lambda: {"entry": _last(folder, "message-refused", "refusals", released=False)}),
        "budget": _part(
            lambda: {
                "cap": json_number(cap.epsilon),
                "spent": ledger.spent(cap.delta).to_json(),
                "held": ledger.committed(cap.delta).to_json(),
                "left": ledger.remaining(cap).to_json(),
            }
        ),
        "cohort": _part(lambda: _cohort(folder)),
        "objections": _part(lambda: {"patients": len(opted_out(folder))}),
        "certificates": _part(
            lambda: {"ca": ca(folder, config).found} if config.server else {"ca": "no federation yet"}
        ),
        "daemon": _part(lambda: asked(folder, ANSWER_TIMEOUT_S).to_json()),
    }


def _part(read: Any) -> dict[str, Any]:
    try:
        return read()
    except (WardroundError, OSError) as error:
        return {"fault": " ".join(str(error).split())}


def _study(known: Any) -> dict[str, Any]:
    last = known.decisions[-1] if known.decisions else None
    name = known.study.study.name if known.study else ""
    shown = {"sha256": known.sha256, "name": name, "state": known.state, "last_decision": last}
    return shown if known.fault is None else {**shown, "fault": known.fault}


def _last(folder: Path, *events: str, released: bool = True) -> dict[str, Any] | None:
    """Return the last entry of these kinds.

    Without `released`, entries that count replies sent again are skipped.
    """
    path = folder / AUDIT_FILE
    if not path.exists():
        return None
    found = (entry for entry in reversed(verified(path).entries) if entry["event"] in events)
    return next((entry for entry in found if released or entry.get("refused") != "released"), None)


def _cohort(folder: Path) -> dict[str, Any]:
    cohort = open_cohort(folder / COHORT)
    labels = Counter(cohort.label_names[label] for label in cohort.labels_N.tolist())
    return {"patients": cohort.patient_count, "images": len(cohort.labels_N), "images_of": dict(sorted(labels.items()))}
