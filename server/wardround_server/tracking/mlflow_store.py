"""The one module that imports MLflow: runs, figures and states in the store of `[tracking]`.

Calls are bounded: each request of the HTTP client has a time limit and is repeated once. MLflow's telemetry is off.
"""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Mapping
from typing import Protocol

from wardround.errors import UsageError
from wardround_server.tracking.progress import Status

RUN_TAG = "wardround.run"  # finds the run again after a crash between its creation and the note of its id
REQUEST_LIMIT_S = 10
SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": str(REQUEST_LIMIT_S),
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_ALLOW_FILE_STORE": "true",  # without it MLflow refuses folders, which it no longer develops
    "GIT_PYTHON_REFRESH": "quiet",  # no program `git` is needed
}


class Store(Protocol):
    """Where figures are written. Every method may raise any exception of MLflow's."""

    def run(self, name: str, parameters: Mapping[str, str]) -> str:
        """Return the id of the run `name`, which is created if it does not exist."""

    def write(self, run: str, figures: Mapping[str, float], step: int) -> None:
        """Write numbers at a step. The same call again changes no value."""

    def end(self, run: str, status: Status) -> None:
        """Set the run's state."""


def installed() -> bool:
    """Return whether MLflow is installed."""
    return importlib.util.find_spec("mlflow") is not None


def mlflow_store(uri: str, experiment: str) -> Store:
    """Return the store at `uri`, and create the experiment if it does not exist.

    Raises:
        UsageError: MLflow is not installed.
        Exception: The store cannot be reached or refuses; any exception of MLflow's.
    """
    os.environ.update(SETTINGS)
    try:
        from mlflow.tracking import MlflowClient
    except ImportError:
        raise UsageError(MISSING) from None
    client = MlflowClient(tracking_uri=uri)
    known = client.get_experiment_by_name(experiment)
    return _MlflowStore(client, known.experiment_id if known is not None else client.create_experiment(experiment))


MISSING = (
    "server.toml: [tracking] needs the extra `mlflow`: pip install --require-hashes --no-deps -r lock/mlflow.txt; "
    "runs continue without it"
)


class _MlflowStore:
    def __init__(self, client, experiment_id: str) -> None:  # type: ignore[no-untyped-def]  # MLflow is not installed
        self._client, self._experiment = client, experiment_id

    def run(self, name: str, parameters: Mapping[str, str]) -> str:
        found = self._client.search_runs([self._experiment], filter_string=f"tags.`{RUN_TAG}` = '{name}'")
        if found:
            return str(found[0].info.run_id)
        run_id = str(self._client.create_run(self._experiment, run_name=name, tags={RUN_TAG: name}).info.run_id)
        for key, value in parameters.items():
            self._client.log_param(run_id, key, value)
        return run_id

    def write(self, run: str, figures: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        self._client.log_batch(
            run, metrics=[Metric(key=name, value=value, timestamp=now_ms, step=step) for name, value in figures.items()]
        )

    def end(self, run: str, status: Status) -> None:
        if status == "RUNNING":
            self._client.update_run(run, status=status)
        else:
            self._client.set_terminated(run, status=status)
