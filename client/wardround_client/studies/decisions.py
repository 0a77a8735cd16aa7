"""The file of decisions about one study: decisions/HASH.json, a list of {decision, who, at, runs}; the last one counts.

`runs` stands beside an approval: how many runs of the study may ever begin at this site, those that began included.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from wardround.errors import UsageError
from wardround.storage.atomic import write_private
from wardround.storage.folders import make_folder
from wardround.storage.locks import locked

DECISIONS = "decisions"
LOCK_FILE, WRITING_FILE = ".deciding.lock", ".writing.lock"  # the first is held around the second, never within
MOST_RUNS = 1000  # that one approval may name


def read_decisions(folder: Path, sha256: str) -> list[dict[str, Any]]:
    """Every decision about a study, oldest first; none where nobody decided. Raises `UsageError` for a damaged file."""
    path = folder / DECISIONS / f"{sha256}.json"
    try:
        decisions = json.loads(path.read_text(encoding="utf-8"))
        return [_checked(one) for one in decisions]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        raise UsageError(
            f"{path}: cannot be read as a list of decisions; restore it, the audit log says what it held"
        ) from None


def last_decision(folder: Path, sha256: str) -> str | None:
    """The decision that counts, or None."""
    decisions = read_decisions(folder, sha256)
    return decisions[-1]["decision"] if decisions else None


def runs_allowed(folder: Path, sha256: str) -> int:
    """`runs_approved` of the decisions about one study. Raises `UsageError` for a damaged file."""
    return runs_approved(read_decisions(folder, sha256))


def runs_approved(decisions: Iterable[Mapping[str, Any]]) -> int:
    """How many runs of a study may ever begin here: what its last approval says, and 1 where that says nothing."""
    approvals = [one for one in decisions if one["decision"] == "approved"]
    return approvals[-1].get("runs", 1) if approvals else 1


def add_decision(folder: Path, decision: str, sha256: str, who: str, runs: int | None = None) -> None:
    """Put a decision behind those there are, whoever else writes one; durable on return."""
    said = {"decision": decision, "who": who, "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    with _alone(folder, WRITING_FILE):
        decisions = [*read_decisions(folder, sha256), said if runs is None else {**said, "runs": runs}]
        write_private(folder / DECISIONS / f"{sha256}.json", (json.dumps(decisions, indent=1) + "\n").encode())


@contextmanager
def deciding(folder: Path) -> Iterator[None]:
    """Hold all steps of one decision together: another process decides before or after, and the last one counts in the
    files as in the audit log.
    """
    with _alone(folder, LOCK_FILE):
        yield


@contextmanager
def _alone(folder: Path, name: str) -> Iterator[None]:
    """Hold a lock of this folder's decisions; others wait. It ends with the process that holds it."""
    path = folder / DECISIONS / name
    try:
        make_folder(path.parent)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror}") from None
    with locked(path):
        yield


def _checked(one: dict[str, Any]) -> dict[str, Any]:
    """A decision as it was written. Raises `ValueError` or `KeyError` where it is none."""
    checked: dict[str, Any] = {key: str(one[key]) for key in ("decision", "who", "at")}
    if "runs" in one:
        if type(one["runs"]) is not int or not 1 <= one["runs"] <= MOST_RUNS:
            raise ValueError("not a number of runs")
        checked["runs"] = one["runs"]
    return checked
