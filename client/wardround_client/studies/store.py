"""A site's studies and the decisions about them, on disk. Only this module reads and writes these files.

    proposals/HASH.json   a study that was received and is not approved: undecided, refused or revoked
    studies/HASH.json     an approved study: the one that rounds read
    decisions/HASH.json   all decisions about it, a list of {decision, who, at, runs, reason}
    asked/HASH.json       the server that asked for it first: {server, ca_sha256, at}

The last decision counts. An approval has `runs`: how many runs of the study may ever begin at this site, including
those that have begun. Every write is atomic and durable on return. `approvals.py` defines what the files mean; this
module imports neither torch nor the modules that read patients' data.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from wardround.errors import PolicyRefusal, UsageError
from wardround.storage.atomic import write_file, write_private
from wardround.storage.disk_errors import unwritable
from wardround.storage.folders import make_folder
from wardround.storage.locks import locked
from wardround.study.load import Study, study_from_json
from wardround_client.site.paths import ASKED, DECIDING_LOCK, DECISIONS, PROPOSALS, STUDIES, WRITING_LOCK

MOST_RUNS = 1000  # the largest number of runs that one approval may allow


@dataclass(frozen=True, kw_only=True)
class Asker:
    """The server that asked for a study first.

    Attributes:
        server: HOST:PORT, as in `site.toml` at that time.
        ca_sha256: The fingerprint of the server's CA, which identifies it; compared by telephone at the enrolment.
        at: When the proposal was received (UTC).
    """

    server: str
    ca_sha256: str
    at: str


def stored_hashes(folder: Path, prefix: str = "") -> list[str]:
    """Return the sorted hashes of all studies of this site that begin with `prefix`."""
    found = {path.stem for where in (PROPOSALS, STUDIES) for path in (folder / where).glob("*.json")}
    return sorted(sha256 for sha256 in found if sha256.startswith(prefix))


def stored_path(folder: Path, sha256: str) -> Path:
    """Return the path of a study: the approved one if there is one, otherwise the proposal, which may not exist."""
    return _approved(folder, sha256) if is_approved(folder, sha256) else _proposed(folder, sha256)


def read_study(path: Path) -> Study:
    """Read a study from a file.

    Raises:
        StudyError: The file is not a valid study.
        UnicodeDecodeError: The file is not text.
    """
    return study_from_json(path.read_text(encoding="utf-8"), source=str(path))


def is_approved(folder: Path, sha256: str) -> bool:
    """Whether the study's file is among the approved ones; a later revocation still counts (see `approved_study`)."""
    return _approved(folder, sha256).is_file()


def is_proposed(folder: Path, sha256: str) -> bool:
    """Whether the study's file is among the proposals."""
    return _proposed(folder, sha256).is_file()


def received_at(folder: Path, sha256: str) -> float:
    """Return when a proposed study was written, in seconds since 1970. Raises `FileNotFoundError`."""
    return _proposed(folder, sha256).stat().st_mtime


def store_asker(folder: Path, sha256: str, server: str, ca_sha256: str) -> None:
    """Store which server asked for a study, unless an earlier request is stored. Raises `OSError`."""
    path = _asked(folder, sha256)
    if not path.exists():
        make_folder(path.parent)
        write_private(path, (json.dumps(asdict(Asker(server=server, ca_sha256=ca_sha256, at=_now()))) + "\n").encode())


def read_asker(folder: Path, sha256: str) -> Asker | None:
    """Return which server asked for a study first; None if none did, or it was not stored, or the file is damaged."""
    try:
        content = json.loads(_asked(folder, sha256).read_text(encoding="utf-8"))
        return Asker(**{name: str(content[name]) for name in ("server", "ca_sha256", "at")})
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None


def undecided(folder: Path) -> int:
    """Return the number of proposals without a decision."""
    return sum(not _decisions(folder, path.stem).exists() for path in (folder / PROPOSALS).glob("*.json"))


def store_approved(folder: Path, study: Study) -> str:
    """Store a study among the approved ones, and return its hash. Raises `OSError`."""
    sha256 = study.sha256()
    _write(_approved(folder, sha256), study)
    return sha256


def store_proposed(folder: Path, study: Study) -> None:
    """Store a study among the proposals. Raises `OSError`."""
    _write(_proposed(folder, study.sha256()), study)


def remove_approved(folder: Path, sha256: str) -> None:
    """Remove a study from the approved ones, if it is there."""
    _approved(folder, sha256).unlink(missing_ok=True)


def remove_proposed(folder: Path, sha256: str) -> None:
    """Remove a study from the proposals, if it is there."""
    _proposed(folder, sha256).unlink(missing_ok=True)


def approved_study(folder: Path, sha256: str) -> Study:
    """Read an approved study.

    Raises:
        PolicyRefusal: No approved study has the hash, or the file or the initial weights were altered since.
    """
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
    """Return every decision about a study, oldest first; empty if there are none.

    Raises:
        UsageError: The file is damaged.
    """
    path = _decisions(folder, sha256)
    try:
        decisions = json.loads(path.read_text(encoding="utf-8"))
        return [_checked(one) for one in decisions]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        raise UsageError(
            f"{path}: cannot be read as a list of decisions; restore it (the audit log lists the decisions)"
        ) from None


def last_decision(folder: Path, sha256: str) -> str | None:
    """Return the last decision, which is the one that counts, or None."""
    decisions = read_decisions(folder, sha256)
    return decisions[-1]["decision"] if decisions else None


def runs_allowed(folder: Path, sha256: str) -> int:
    """Return how many runs of a study may ever begin here. Raises `UsageError` for a damaged file."""
    return runs_approved(read_decisions(folder, sha256))


def runs_approved(decisions: Iterable[Mapping[str, Any]]) -> int:
    """Return how many runs of a study may ever begin here, by its last approval; 1 if the approval gives no number."""
    approvals = [one for one in decisions if one["decision"] == "approved"]
    return approvals[-1].get("runs", 1) if approvals else 1


def add_decision(
    folder: Path, decision: str, sha256: str, who: str, runs: int | None = None, reason: str | None = None
) -> None:
    """Append a decision to the study's list; safe with concurrent writers, and durable on return."""
    entry: dict[str, Any] = {"decision": decision, "who": who}
    entry |= {"at": _now()}
    entry |= {name: value for name, value in (("runs", runs), ("reason", reason or None)) if value is not None}
    with _alone(folder / WRITING_LOCK):
        decisions = [*read_decisions(folder, sha256), entry]
        write_private(_decisions(folder, sha256), (json.dumps(decisions, indent=1) + "\n").encode())


@contextmanager
def deciding(folder: Path) -> Iterator[None]:
    """Hold a lock around all steps of one decision.

    Other processes decide before or after, so that the last decision is the same in the files and in the audit log.
    """
    with _alone(folder / DECIDING_LOCK):
        yield


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold a lock file in the folder of decisions, waiting for other processes; released when the process ends."""
    try:
        make_folder(path.parent)
    except OSError as error:
        raise unwritable(path, error) from None
    with locked(path):
        yield


def _write(path: Path, study: Study) -> None:
    make_folder(path.parent)
    write_file(path, (study.to_json() + "\n").encode())


def _checked(one: dict[str, Any]) -> dict[str, Any]:
    """Return a decision as it was written. Raises `ValueError`, `KeyError` or `TypeError` if it is malformed."""
    checked: dict[str, Any] = {key: str(one[key]) for key in ("decision", "who", "at")}
    if "runs" in one:
        if type(one["runs"]) is not int or not 1 <= one["runs"] <= MOST_RUNS:
            raise ValueError("not a number of runs")
        checked["runs"] = one["runs"]
    if "reason" in one:
        checked["reason"] = str(one["reason"])
    return checked


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _approved(folder: Path, sha256: str) -> Path:
    return folder / STUDIES / f"{sha256}.json"


def _proposed(folder: Path, sha256: str) -> Path:
    return folder / PROPOSALS / f"{sha256}.json"


def _decisions(folder: Path, sha256: str) -> Path:
    return folder / DECISIONS / f"{sha256}.json"


def _asked(folder: Path, sha256: str) -> Path:
    return folder / ASKED / f"{sha256}.json"
