"""Proposed studies: a server may put one before this hospital, and ask what has become of it. Only a person decides."""

from __future__ import annotations

from pathlib import Path

from wardround.errors import PolicyRefusal
from wardround.study.load import Study
from wardround.wire.proposal import State
from wardround_client.studies import store

MOST_UNDECIDED = 100  # a server cannot fill a hospital's disk, nor its list of studies; what was refused is not counted


def receive(folder: Path, study: Study) -> State:
    """Keep a proposed study for a person to decide on, unless that has happened; returns what has been decided.

    Raises `PolicyRefusal` where too many wait for a decision.
    """
    sha256 = study.sha256()
    state = state_of(folder, sha256)
    if state != "proposed" or store.is_proposed(folder, sha256):
        return state
    with store.deciding(folder):  # tasks that receive at once are counted one after another
        if store.undecided(folder) >= MOST_UNDECIDED:
            raise PolicyRefusal("too_many_proposals", f"{MOST_UNDECIDED} proposals wait for a decision already")
        store.store_proposed(folder, study)
    return state


def state_of(folder: Path, sha256: str) -> State:
    """What this hospital has decided about a study, as `approvals` sees it, without loading what reads patients."""
    last = store.last_decision(folder, sha256)
    if last in ("refused", "revoked"):
        return "refused" if last == "refused" else "revoked"
    return "approved" if store.is_approved(folder, sha256) else "proposed"
