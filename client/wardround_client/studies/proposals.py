"""Proposed studies: a server may put one before this hospital, and ask what has become of it. Only a person decides.

proposals/HASH.json   received and undecided      studies/HASH.json   approved (site/site.py)
decisions/HASH.json   who decided what, when, and for how many runs
"""

from __future__ import annotations

import os
from pathlib import Path

from wardround.errors import PolicyRefusal
from wardround.storage.atomic import owner_only
from wardround.storage.folders import make_folder
from wardround.study.load import Study
from wardround.wire.proposal import State
from wardround_client.studies.decisions import DECISIONS, last_decision

MOST_UNDECIDED = 100  # a server cannot fill a hospital's disk, nor its list of studies; what was refused is not counted


def receive(folder: Path, study: Study) -> State:
    """Keep a proposed study for a person to decide on, unless that has happened; returns what has been decided.

    Raises `PolicyRefusal` where too many wait for a decision.
    """
    sha256 = study.sha256()
    state = state_of(folder, sha256)
    path = folder / "proposals" / f"{sha256}.json"
    if state != "proposed" or path.is_file():
        return state
    make_folder(path.parent)
    undecided = [one for one in path.parent.glob("*.json") if not (folder / DECISIONS / one.name).exists()]
    if len(undecided) >= MOST_UNDECIDED:
        raise PolicyRefusal("too_many_proposals", f"{MOST_UNDECIDED} proposals wait for a decision already")
    partial = path.with_name(f".{path.name}.partial")
    with open(partial, "w", encoding="utf-8", opener=owner_only) as file:
        file.write(study.to_json() + "\n")
    os.replace(partial, path)
    return state


def state_of(folder: Path, sha256: str) -> State:
    """What this hospital has decided about a study, as `approvals` sees it, without loading what reads patients."""
    last = last_decision(folder, sha256)
    if last in ("refused", "revoked"):
        return "refused" if last == "refused" else "revoked"
    return "approved" if (folder / "studies" / f"{sha256}.json").is_file() else "proposed"
