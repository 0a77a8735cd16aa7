"""A run's folder at the server. The run has our own id, and outlives Flower's runs, processes and cuts of power.

`paths.py` lists what it holds.
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
DECIDED = ("approved", "proposed", "refused", "revoked")  # a site's own words; whatever else stands for one is a code

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Said:
    """A site's last word on a study: "approved", "proposed" (not decided), "refused", "revoked", or a code that says
    why there is none; since when, in seconds since 1970.
    """

    state: str
    at: float


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """One run, by its folder."""

    path: Path

    @property
    def run_id(self) -> str:
        return self.path.name

    @property
    def server(self) -> Path:
        """The server's folder."""
        return self.path.parents[1]

    def study(self) -> Study:
        """The study of this run. Raises `UsageError` where the folder holds none."""
        path = self.path / STUDY_FILE
        try:
            return study_from_json(path.read_text(encoding="utf-8"), source=str(path))
        except OSError:
            raise UsageError(f"{self.path}: is not a run; `wardround-server runs` lists the runs") from None

    def approvals(self) -> dict[str, Said]:
        """The sites' last words, by name."""
        return {site: Said(**said) for site, said in (read_json(self.path / APPROVALS_FILE) or {}).items()}

    def approved(self) -> tuple[str, ...]:
        """The sites that approved, in the order of names."""
        return tuple(sorted(site for site, said in self.approvals().items() if said.state == "approved"))

    def hear(self, words: Mapping[str, str]) -> None:
        """Keep what sites said now. A site that could not be asked keeps the word it gave before."""
        known = {site: {"state": said.state, "at": said.at} for site, said in self.approvals().items()}
        for site, state in words.items():
            before = known.get(site, {"state": ""})["state"]
            if state != before and (state in DECIDED or before not in DECIDED):
                known[site] = {"state": state, "at": time.time()}
        write_json(self.path / APPROVALS_FILE, known)

    def state(self) -> State:
        """Where the run is, from what lies in its folder."""
        if (self.path / RESULT_FILE).is_file():
            return "finished"
        if self.is_stopped:
            return "stopped"
        return "training" if len(self.approved()) >= quorum(self.study()) else "proposed"

    def rounds_done(self) -> int:
        """How many rounds have their checkpoint."""
        names = [path.stem for path in (self.path / CHECKPOINTS).glob(ROUND_CHECKPOINTS)]
        return max((int(name.removeprefix("round-")) for name in names), default=0)

    def problem(self) -> dict[str, Any] | None:
        """Why the last phase ended without success: `phase`, `error` (one line), `at`; None where none did."""
        return read_json(self.path / PROBLEM_FILE)

    def result(self) -> dict[str, Any] | None:
        """result.json of a finished run, or None."""
        return read_json(self.path / RESULT_FILE)

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl: what became of each site in each round."""
        return read_lines(self.path / METRICS_FILE)

    @property
    def is_stopped(self) -> bool:
        """Whether the operator wants no more of it now."""
        return (self.path / STOPPED_FILE).is_file()

    def stop(self) -> None:
        """Say that the operator wants no more of it. Durable on return. Raises `UsageError` where it is finished."""
        if self.state() == "finished":
            raise UsageError(f"run {self.run_id} is finished and cannot be stopped")
        write_text(self.path / STOPPED_FILE, time.strftime("%Y-%m-%dT%H:%M:%SZ\n", time.gmtime()))

    def resume(self, record: Callable[[], object] = bool) -> None:
        """Say that a stopped run should go on; `record` writes it down before. Raises `UsageError` where it was not
        stopped.
        """
        if self.state() != "stopped":
            raise UsageError(f"run {self.run_id} is {self.state()}; only a stopped run can be resumed")
        record()
        (self.path / STOPPED_FILE).unlink()
        fsync(self.path)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Be the one process that works on the run; what goes wrong is kept in problem.json, unless the operator has
        stopped the run. Raises `RoundError` where
        another process is at it.
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
        """Whether a process works on the run now."""
        return is_locked(self.path / PHASE_LOCK)


def create_run(server: Path, study: Study, record: Callable[[RunFolder], object] = bool) -> RunFolder:
    """A new run of a study, or the one of it that is not finished or stopped: submitting twice makes no second run.

    `record` writes a new one down before it is there; where that fails, there is none.
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
    """All runs, the oldest first."""
    found = [RunFolder(path=path.parent) for path in (server / RUNS).glob(f"*/{STUDY_FILE}")]
    return sorted(found, key=lambda run: ((run.path / STUDY_FILE).stat().st_mtime, run.run_id))


def find_run(server: Path, run_id: str) -> RunFolder:
    """A run by its id. Raises `UsageError` where there is none."""
    for run in runs(server):
        if run.run_id == run_id:
            return run
    raise UsageError(f"{server}: there is no run {run_id!r}; `wardround-server runs` lists the runs")


def largest_network(server: Path) -> tuple[int, int]:
    """(tensors, bytes) of the largest networks among all runs: no site has more than that to send in one answer."""
    tensors, size = 0, 0
    for path in (server / RUNS).glob(f"*/{START_FILE}"):
        with path.open("rb") as file:
            names = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        tensors, size = max(tensors, len(names)), max(size, path.stat().st_size)
    return tensors, size


def quorum(study: Study) -> int:
    """How many sites a round needs."""
    return study.aggregation.min_sites or study.aggregation.nominal_sites


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON file's content, or None where there is no such file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file in one step, durably."""
    write_text(path, json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file in one step, durably."""
    write_file(path, text.encode())
