"""The process that writes the progress of runs to MLflow. The daemon keeps it running if `[tracking]` names a store.

It reads the runs' folders and writes nothing there but `tracking.json` of each run, its own memory. A store that fails
or does not answer delays this process alone: it tries again after a growing pause, and then writes all that is missing.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from wardround.errors import UsageError
from wardround.operations.logs import at, cut, print_lines
from wardround.printable import escaped
from wardround.processes.spawn import ISOLATED_PYTHON
from wardround.processes.supervisor import Child, stop_on_signals
from wardround_server.operations.config import ServerConfig, TrackingSection, load_server_config
from wardround_server.runs.folder import RunFolder, one_line, read_json, runs, write_json
from wardround_server.runs.paths import TRACKING_FILE
from wardround_server.tracking.mlflow_store import MISSING, Store, installed, mlflow_store
from wardround_server.tracking.progress import STATUS, parameters_of, result_figures, rounds_after

LOOK_S = 5.0
SHORTEST_PAUSE_S, LONGEST_PAUSE_S = 15.0, 600.0
REASON_CHARACTERS = 300
KEPT = ("HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "SSL_CERT_FILE")
# Credentials and certificates of MLflow's own: they are no part of server.toml.
KEPT_PREFIX = "MLFLOW_TRACKING_"

log = logging.getLogger("wardround_server.tracking.sink")


@dataclass(frozen=True, kw_only=True)
class Written:
    """What of a run the store holds: the id of its run there, the last round, and its state."""

    uri: str
    mlflow_run: str
    round: int = 0
    status: str = ""


def tracking_child(folder: Path, config: ServerConfig) -> list[Child]:
    """Return the process for the daemon, or none if `[tracking]` is off or MLflow is not installed, which is logged."""
    if not config.tracking.mlflow_uri:
        return []
    if not installed():
        log.error("%s", MISSING)
        return []
    kept = {name: value for name, value in os.environ.items() if name in KEPT or name.startswith(KEPT_PREFIX)}
    command = (*ISOLATED_PYTHON, "-m", "wardround_server.tracking.sink", str(folder))
    environment = {**kept, "PATH": "/usr/bin:/bin", "PYTHONUNBUFFERED": "1"}
    return [Child(name="tracking", command=command, environment=environment, folder=folder)]


def keep_writing(folder: Path, section: TrackingSection, stopped: threading.Event, store: Callable[[], Store]) -> None:
    """Write what is new every `LOOK_S` seconds until `stopped` is set. `store` connects to the store.

    A failure is logged as one line, and everything is tried again after a pause that grows to ten minutes.
    """
    connected: Store | None = None
    pause_s = 0.0
    while not stopped.wait(pause_s or LOOK_S):
        try:
            connected = connected or store()
            for run in runs(folder):
                with at(run=run.run_id):
                    write_run(run, section.mlflow_uri, connected)
            pause_s = 0.0
        except UsageError:
            raise
        except Exception as error:  # whatever MLflow raises: a run never depends on it
            connected, pause_s = None, min(max(2 * pause_s, SHORTEST_PAUSE_S), LONGEST_PAUSE_S)
            reason = cut(escaped(one_line(error)), REASON_CHARACTERS)
            log.warning("tracking: %s; the next attempt is in %.0f s, and runs continue", reason, pause_s)


def write_run(run: RunFolder, uri: str, store: Store) -> None:
    """Write what the store lacks of a run: parameters, finished rounds, the result's figures, the state.

    After each step `tracking.json` is brought up to date. Raises whatever the store raises.
    """
    status, before = STATUS.get(run.state()), read_json(run.path / TRACKING_FILE)
    written = Written(**before) if before is not None and before["uri"] == uri else None
    if status is None or (written is None and run.rounds_done() == 0):
        return
    if written is None:
        written = _keep(run, Written(uri=uri, mlflow_run=store.run(run.run_id, parameters_of(run.study()))))
    for one in rounds_after(run, written.round):
        store.write(written.mlflow_run, one.figures, one.round)
        written = _keep(run, replace(written, round=one.round))
    if status != written.status:
        if status == "FINISHED":
            store.write(written.mlflow_run, result_figures(run.result() or {}), written.round)
        store.end(written.mlflow_run, status)
        _keep(run, replace(written, status=status))


def _keep(run: RunFolder, written: Written) -> Written:
    write_json(run.path / TRACKING_FILE, asdict(written))
    return written


def main() -> None:
    """Write the progress of the runs of the folder in the first argument, until SIGTERM."""
    folder, stopped = Path(sys.argv[1]), threading.Event()
    print_lines("wardround_server")
    stop_on_signals(stopped)
    try:
        section = load_server_config(folder).tracking
        keep_writing(folder, section, stopped, lambda: mlflow_store(section.mlflow_uri, section.experiment))
    except UsageError as error:  # it would be the same after a restart
        log.error("%s", error)
        stopped.wait()


if __name__ == "__main__":
    main()
