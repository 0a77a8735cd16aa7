"""A run's folder at the server. A run has its own id and survives Flower's runs, its processes and power failures.

`paths.py` lists the files of the folder.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from wardround.errors import RoundError, UsageError
from wardround.storage.atomic import fsync, write_file
from wardround.storage.folders import make_folder
from wardround.storage.locks import is_locked, try_locked
from wardround.study.load import Study, study_from_json
from wardround_server.operations.paths import RUNS
from wardround_server.runs.metrics_log import read_lines
from wardround_server.runs.paths import (
    APPROVALS_FILE,
    CHECKPOINTS,
    METRICS_FILE,
    PHASE_LOCK,
    PROBLEM_FILE,
    RESULT_FILE,
    ROUND_CHECKPOINTS,
    START_FILE,
    STOPPED_FILE,
    STUDY_FILE,
)

State = Literal["proposed", "training", "finished", "stopped"]
DECIDED = ("approved", "proposed", "refused", "revoked")  # the states that a site sends; any other one is a code

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SiteDecision:
    """A site's last decision on a study, and the time of it (seconds since 1970).

    `state` is "approved", "proposed" (not yet decided), "refused", "revoked", or a code with the reason why the site
    sent none of these.
    """

    state: str
    at: float


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """One run, identified by its folder."""

    path: Path

    @property
    def run_id(self) -> str:
        return self.path.name

    @property
    def server(self) -> Path:
        """The server's folder."""
        return self.path.parents[1]

    def study(self) -> Study:
        """Read the study of this run. Raises `UsageError` if the folder contains none."""
        path = self.path / STUDY_FILE
        try:
            return study_from_json(path.read_text(encoding="utf-8"), source=str(path))
        except OSError:
            raise UsageError(f"{self.path}: is not a run; `wardround-server runs` lists the runs") from None

    def approvals(self) -> dict[str, SiteDecision]:
        """Return the last decision of each site, by name."""
        return {
            site: SiteDecision(**decision) for site, decision in (read_json(self.path / APPROVALS_FILE) or {}).items()
        }

    def approved(self) -> tuple[str, ...]:
        """Return the names of the sites that approved, sorted."""
        return tuple(sorted(site for site, decision in self.approvals().items() if decision.state == "approved"))

    def record_decisions(self, decisions: Mapping[str, str]) -> None:
        """Store the sites' new decisions. A code does not replace a decision that the site sent before."""
        known = {site: {"state": decision.state, "at": decision.at} for site, decision in self.approvals().items()}
        for site, state in decisions.items():
            before = known.get(site, {"state": ""})["state"]
            if state != before and (state in DECIDED or before not in DECIDED):
                known[site] = {"state": state, "at": time.time()}
        write_json(self.path / APPROVALS_FILE, known)

    def state(self) -> State:
        """Derive the state of the run from the files in its folder."""
        if (self.path / RESULT_FILE).is_file():
            return "finished"
        if self.is_stopped:
            return "stopped"
        return "training" if len(self.approved()) >= quorum(self.study()) else "proposed"

    def rounds_done(self) -> int:
        """Return the number of the last round that has a checkpoint."""
        names = [path.stem for path in (self.path / CHECKPOINTS).glob(ROUND_CHECKPOINTS)]
        return max((int(name.removeprefix("round-")) for name in names), default=0)

    def problem(self) -> dict[str, Any] | None:
        """Return why the last phase failed: `phase`, `error` (one line), `at`; None if it did not fail."""
        return read_json(self.path / PROBLEM_FILE)

    def result(self) -> dict[str, Any] | None:
        """Return the content of result.json of a finished run, or None."""
        return read_json(self.path / RESULT_FILE)

    def metrics(self) -> list[dict[str, Any]]:
        """Return the lines of metrics.jsonl: the outcome of each site in each round."""
        return read_lines(self.path / METRICS_FILE)

    @property
    def is_stopped(self) -> bool:
        """Whether the operator has stopped the run."""
        return (self.path / STOPPED_FILE).is_file()

    def stop(self) -> None:
        """Mark the run as stopped by the operator, durably. Raises `UsageError` if it is finished."""
        if self.state() == "finished":
            raise UsageError(f"run {self.run_id} is finished and cannot be stopped")
        write_text(self.path / STOPPED_FILE, time.strftime("%Y-%m-%dT%H:%M:%SZ\n", time.gmtime()))

    def resume(self, record: Callable[[], object] = bool) -> None:
        """Let a stopped run continue; `record` is called before. Raises `UsageError` if the run is not stopped."""
        if self.state() != "stopped":
            raise UsageError(f"run {self.run_id} is {self.state()}; only a stopped run can be resumed")
        record()
        (self.path / STOPPED_FILE).unlink()
        fsync(self.path)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Hold the run's lock while a phase works on it.

        An exception in the phase is stored in problem.json, unless the operator has stopped the run, and raised again.
        Raises `RoundError` if another process works on the run.
        """
        with try_locked(self.path / PHASE_LOCK) as alone:
            if not alone:
                raise RoundError(f"run {self.run_id}: another process is working on it")
            try:
                yield
            except Exception as error:
                log.error("phase %s failed: %s", name, one_line(error))
                if self.is_stopped:
                    raise
                write_json(self.path / PROBLEM_FILE, {"phase": name, "error": one_line(error), "at": time.time()})
                raise
            (self.path / PROBLEM_FILE).unlink(missing_ok=True)

    def at_work(self) -> bool:
        """Return whether a process works on the run now."""
        return is_locked(self.path / PHASE_LOCK)


def create_run(server: Path, study: Study, record: Callable[[RunFolder], object] = bool) -> RunFolder:
    """Create a run of a study, or return the run of this study that is neither finished nor stopped.

    Submitting a study twice therefore does not create a second run. `record` is called with a new run before it
    becomes visible; if it raises, the run is not created.
    """
    sha256 = study.sha256()
    for run in runs(server):
        if run.study().sha256() == sha256 and run.state() in ("proposed", "training"):
            return run
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    path = server / RUNS / f"{study.study.name[:40]}-{stamp}-{sha256[:6]}"
    make_folder(path.parent)
    path.mkdir(mode=0o700)
    record(RunFolder(path=path))
    write_text(path / STUDY_FILE, study.to_json() + "\n")
    return RunFolder(path=path)


def runs(server: Path) -> list[RunFolder]:
    """Return all runs, the oldest first."""
    found = [RunFolder(path=path.parent) for path in (server / RUNS).glob(f"*/{STUDY_FILE}")]
    return sorted(found, key=lambda run: ((run.path / STUDY_FILE).stat().st_mtime, run.run_id))


def find_run(server: Path, run_id: str) -> RunFolder:
    """Find a run by its id. Raises `UsageError` if there is none."""
    for run in runs(server):
        if run.run_id == run_id:
            return run
    raise UsageError(f"{server}: there is no run {run_id!r}; `wardround-server runs` lists the runs")


def largest_network(server: Path) -> tuple[int, int]:
    """Return (tensors, bytes), each the maximum over the networks of all runs, as the limit for a site's reply."""
    tensors, size = 0, 0
    for path in (server / RUNS).glob(f"*/{START_FILE}"):
        with path.open("rb") as file:
            names = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        tensors, size = max(tensors, len(names)), max(size, path.stat().st_size)
    return tensors, size


def quorum(study: Study) -> int:
    """Return how many sites a round needs."""
    return study.aggregation.min_sites or study.aggregation.nominal_sites


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the content of a JSON file, or None if the file does not exist."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file atomically and durably."""
    write_text(path, json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically and durably."""
    write_file(path, text.encode())
