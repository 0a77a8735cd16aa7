"""Proposed studies: a server may propose one to this hospital and query its state; only a person decides."""

from __future__ import annotations

import logging
from pathlib import Path

from wardround.errors import PolicyRefusal, WardroundError
from wardround.study.load import Study
from wardround.wire.proposal import State
from wardround_client.site.config import load_site_config
from wardround_client.site.paths import CONFIG_FILE
from wardround_client.studies import store

MOST_UNDECIDED = 100  # keeps a server from filling a hospital's disk or list of studies; refused ones do not count

log = logging.getLogger(__name__)


def receive(folder: Path, study: Study) -> State:
    """Store a proposed study for a person to decide on, unless it is known already. Returns its state.

    Which server asked first is stored too, also for a study that was known before, for example from a file.

    Raises:
        PolicyRefusal: Too many proposals are waiting for a decision.
    """
    sha256 = study.sha256()
    state = state_of(folder, sha256)
    if state != "proposed" or store.is_proposed(folder, sha256):
        _store_asker(folder, sha256)
        return state
    with store.deciding(folder):  # tasks that receive at once are counted one after another
        if store.undecided(folder) >= MOST_UNDECIDED:
            raise PolicyRefusal("too_many_proposals", f"{MOST_UNDECIDED} proposals already wait for a decision")
        store.store_proposed(folder, study)
    _store_asker(folder, sha256)
    return state


def _store_asker(folder: Path, sha256: str) -> None:
    try:
        if (server := load_site_config(folder / CONFIG_FILE).server) is not None:
            store.store_asker(folder, sha256, server.address, server.ca_sha256)
    except (WardroundError, OSError) as error:  # the site replies all the same
        log.warning("who asked for the study %s cannot be stored: %s", sha256[:12], error)


def state_of(folder: Path, sha256: str) -> State:
    """Return this hospital's decision about a study.

    It is the same as in `approvals`, but does not import the modules that read patients' data.
    """
    last = store.last_decision(folder, sha256)
    if last in ("refused", "revoked"):
        return "refused" if last == "refused" else "revoked"
    return "approved" if store.is_approved(folder, sha256) else "proposed"
