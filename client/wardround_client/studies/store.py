"""A site's studies and what was decided about them, on disk. Only this module reads and writes these files.

    proposals/HASH.json   a study that was received and is not approved: undecided, refused or revoked
    studies/HASH.json     an approved study: the one that rounds read
    decisions/HASH.json   every decision about it, a list of {decision, who, at, runs}; the last one counts

`runs` stands beside an approval: how many runs of the study may ever begin at this site, those that began included.
Every write is atomic and durable on return. What the files mean is in `approvals.py`; nothing here loads torch or what
reads patients.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from wardround.errors import PolicyRefusal, UsageError
from wardround.storage.atomic import write_file, write_private
from wardround.storage.folders import make_folder
from wardround.storage.locks import locked
from wardround.study.load import Study, study_from_json
from wardround_client.site.paths import DECIDING_LOCK, DECISIONS, PROPOSALS, STUDIES, WRITING_LOCK

MOST_RUNS = 1000  # that one approval may name


def stored_hashes(folder: Path, prefix: str = "") -> list[str]:
    """The hashes of all studies of this site that begin with `prefix`, in order."""
    found = {path.stem for where in (PROPOSALS, STUDIES) for path in (folder / where).glob("*.json")}
    return sorted(sha256 for sha256 in found if sha256.startswith(prefix))


def stored_path(folder: Path, sha256: str) -> Path:
    """Where a study lies: among the approved ones, else among the proposals, whether it is there or not."""
    return _approved(folder, sha256) if is_approved(folder, sha256) else _proposed(folder, sha256)


def read_study(path: Path) -> Study:
    """The study of a file. Raises `StudyError` where it is none, and `UnicodeDecodeError` where it is no text."""
    return study_from_json(path.read_text(encoding="utf-8"), source=str(path))


def is_approved(folder: Path, sha256: str) -> bool:
    """Whether the study lies among the approved ones; a revocation counts all the same (`approved_study`)."""
    return _approved(folder, sha256).is_file()


def is_proposed(folder: Path, sha256: str) -> bool:
    """Whether the study lies among the proposals."""
    return _proposed(folder, sha256).is_file()


def received_at(folder: Path, sha256: str) -> float:
    """When a proposed study was written here, in seconds since 1970. Raises `FileNotFoundError`."""
    return _proposed(folder, sha256).stat().st_mtime


def undecided(folder: Path) -> int:
    """How many proposals nobody has decided on."""
    return sum(not _decisions(folder, path.stem).exists() for path in (folder / PROPOSALS).glob("*.json"))


def store_approved(folder: Path, study: Study) -> str:
    """Put a study among the approved ones; returns its hash. Raises `OSError`."""
    sha256 = study.sha256()
    _write(_approved(folder, sha256), study)
    return sha256


def store_proposed(folder: Path, study: Study) -> None:
    """Put a study among the proposals. Raises `OSError`."""
    _write(_proposed(folder, study.sha256()), study)


def remove_approved(folder: Path, sha256: str) -> None:
    """Take a study from the approved ones, if it is there."""
    _approved(folder, sha256).unlink(missing_ok=True)


def remove_proposed(folder: Path, sha256: str) -> None:
    """Take a study from the proposals, if it is there."""
    _proposed(folder, sha256).unlink(missing_ok=True)


def approved_study(folder: Path, sha256: str) -> Study:
    """Read an approved study. Raises `PolicyRefusal` where the hash is unknown or the file no longer has it."""
    if not is_approved(folder, sha256) or last_decision(folder, sha256) not in (None, "approved"):
        raise PolicyRefusal("not_approved", f"no approved study has the hash {sha256[:12]}")
    study = read_study(_approved(folder, sha256))
    weights = study.model.init_sha256
    if study.sha256() != sha256 or (
        weights and hashlib.sha256(Path(study.model.init).read_bytes()).hexdigest() != weights
    ):
        raise PolicyRefusal("altered", f"the approved study {sha256[:12]} was altered after its approval")
    return study


def read_decisions(folder: Path, sha256: str) -> list[dict[str, Any]]:
    """Every decision about a study, oldest first; none where nobody decided. Raises `UsageError` for a damaged file."""
    path = _decisions(folder, sha256)
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
    with _alone(folder / WRITING_LOCK):
        decisions = [*read_decisions(folder, sha256), said if runs is None else {**said, "runs": runs}]
        write_private(_decisions(folder, sha256), (json.dumps(decisions, indent=1) + "\n").encode())


@contextmanager
def deciding(folder: Path) -> Iterator[None]:
    """Hold all steps of one decision together: another process decides before or after, and the last one counts in the
    files as in the audit log.
    """
    with _alone(folder / DECIDING_LOCK):
        yield


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold a lock of this folder's decisions; others wait. It ends with the process that holds it."""
    try:
        make_folder(path.parent)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror}") from None
    with locked(path):
        yield


def _write(path: Path, study: Study) -> None:
    make_folder(path.parent)
    write_file(path, (study.to_json() + "\n").encode())


def _checked(one: dict[str, Any]) -> dict[str, Any]:
    """A decision as it was written. Raises `ValueError` or `KeyError` where it is none."""
    checked: dict[str, Any] = {key: str(one[key]) for key in ("decision", "who", "at")}
    if "runs" in one:
        if type(one["runs"]) is not int or not 1 <= one["runs"] <= MOST_RUNS:
            raise ValueError("not a number of runs")
        checked["runs"] = one["runs"]
    return checked


def _approved(folder: Path, sha256: str) -> Path:
    return folder / STUDIES / f"{sha256}.json"


def _proposed(folder: Path, sha256: str) -> Path:
    return folder / PROPOSALS / f"{sha256}.json"


def _decisions(folder: Path, sha256: str) -> Path:
    return folder / DECISIONS / f"{sha256}.json"
