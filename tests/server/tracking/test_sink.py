"""What of a run is written to MLflow, and that no failure there concerns a run."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from builders.debian import beside
from builders.runs import Sites, study_of, trained
from paths import ROOT

from wardround.errors import UsageError
from wardround.storage.toml import read_toml
from wardround_server.operations import doctor
from wardround_server.operations.config import ServerConfig, TrackingSection, config_text
from wardround_server.runs.folder import RunFolder, create_run
from wardround_server.tracking import mlflow_store, sink
from wardround_server.tracking.progress import result_figures

URI = "file:///srv/mlflow"


class Memory:
    """A store that keeps everything, and fails from its `fails_at`-th call on until that is set to 0."""

    def __init__(self) -> None:
        self.parameters: dict[str, dict[str, str]] = {}
        self.written: list[tuple[int, dict[str, float]]] = []
        self.states: list[str] = []
        self.fails_at = self.calls = 0

    def _count(self) -> None:
        self.calls += 1
        if self.fails_at and self.calls >= self.fails_at:
            raise ConnectionError("the store\nis away \x1b[31m")

    def run(self, name, parameters):
        self._count()
        self.parameters[name] = dict(parameters)
        return "1"

    def write(self, run, figures, step):
        self._count()
        self.written.append((step, dict(figures)))

    def end(self, run, status):
        self._count()
        self.states.append(status)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run of two rounds, in the first of which a site is missing."""
    server = tmp_path_factory.mktemp("server")
    run = create_run(server, study_of(figures=1.0))
    return trained(run, Sites(codes={(1, "east"): "late"}))


@pytest.fixture(autouse=True)
def nothing_is_known(finished: RunFolder) -> None:
    (finished.path / "tracking.json").unlink(missing_ok=True)


def test_a_run_is_written_once_with_sums_alone_and_the_figures_of_its_result(finished: RunFolder) -> None:
    store = Memory()
    for _ in range(3):
        sink.write_run(finished, URI, store)
    assert store.parameters[finished.run_id]["epsilon_promised"] == "8.0"
    (first, one), (second, two), (last, figures) = store.written
    assert (first, second, last) == (1, 2, 2) and store.states == ["FINISHED"]
    assert (one["sites_counted"], one["sites_missing"]) == (1, 1) and two["sites_counted"] == 2
    lines = [line for line in finished.metrics() if line["round"] == 2]
    assert two["bytes_up"] == sum(line["bytes_up"] for line in lines)
    assert two["update_norm_mean"] == pytest.approx(sum(line["update_norm"] for line in lines) / 2)
    result = json.dumps(finished.result())
    assert figures and all(name.split(".")[-1] in result for name in figures)
    assert not any("ledger" in name for name in figures)


def test_what_stands_in_a_metrics_name_is_no_path_and_no_list_or_text_is_written() -> None:
    result = {"a": {"../x\n": 1.5, "ok": True, "nan": float("nan")}, "list": [1, 2], "status": "finished"}
    assert result_figures(result) == {"result.a..._x_": 1.5}
    assert len(result_figures({"many": dict.fromkeys(map(str, range(2000)), 1)})) == 500


def test_after_any_failure_the_store_gets_all_that_is_missing(finished: RunFolder) -> None:
    for calls in range(1, 6):
        (finished.path / "tracking.json").unlink(missing_ok=True)
        store = Memory()
        store.fails_at = calls
        with pytest.raises(ConnectionError):
            sink.write_run(finished, URI, store)
        store.fails_at = 0
        sink.write_run(finished, URI, store)
        steps = [step for step, figures in store.written if "sites_counted" in figures]
        assert steps == [1, 2] and store.states == ["FINISHED"]


def test_another_store_begins_from_the_start(finished: RunFolder) -> None:
    sink.write_run(finished, URI, Memory())
    store = Memory()
    sink.write_run(finished, "https://mlflow.operator.example", store)
    assert len(store.written) == 3


def test_a_stopped_run_is_marked_and_a_run_without_a_round_is_not_written(finished: RunFolder, tmp_path: Path) -> None:
    store, fresh = Memory(), create_run(tmp_path, study_of())
    sink.write_run(fresh, URI, store)
    fresh.stop()
    sink.write_run(fresh, URI, store)
    assert store.calls == 0 and not (fresh.path / "tracking.json").exists()
    os.rename(finished.path / "result.json", finished.path / "kept")
    try:
        finished.stop()
        sink.write_run(finished, URI, store)
        finished.resume()
        sink.write_run(finished, URI, store)
    finally:
        os.rename(finished.path / "kept", finished.path / "result.json")
    sink.write_run(finished, URI, store)
    assert store.states == ["KILLED", "RUNNING", "FINISHED"]


def test_a_store_that_fails_is_logged_as_one_line_and_tried_again(
    finished: RunFolder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sink, "LOOK_S", 0.01)
    monkeypatch.setattr(sink, "SHORTEST_PAUSE_S", 0.01)
    store, stopped = Memory(), threading.Event()
    store.fails_at = 1

    def connect() -> Memory:
        if len(caplog.records) == 2:
            store.fails_at = 0
        return store

    section = TrackingSection(mlflow_uri=URI)
    with caplog.at_level(logging.WARNING):
        thread = threading.Thread(target=sink.keep_writing, args=(finished.server, section, stopped, connect))
        thread.start()
        for _ in range(500):
            if store.states:
                break
            stopped.wait(0.01)
        stopped.set()
        thread.join(10)
    assert store.states == ["FINISHED"] and len(caplog.messages) == 2
    assert all("\n" not in text and "\x1b" not in text and "runs continue" in text for text in caplog.messages)


@pytest.mark.parametrize(
    "uri",
    [
        "sqlite:///x.db",
        "file://relative",
        "mlruns",
        "https://user:secret@host",
        "https://host?x=1",
        "ftp://host",
        "http://",
    ],
)
def test_only_folders_and_servers_without_a_password_are_taken(uri: str, tmp_path: Path) -> None:
    path = tmp_path / "server.toml"
    path.write_text(config_text("x", ("localhost",), 9092).replace('mlflow_uri = ""', f'mlflow_uri = "{uri}"'))
    with pytest.raises(UsageError, match="mlflow_uri") as refused:
        read_toml(path, ServerConfig)
    assert "\n" not in str(refused.value) and "secret" not in str(refused.value)
    path.write_text(path.read_text().replace(uri, "https://mlflow.operator.example:5000/team"))
    assert read_toml(path, ServerConfig).tracking.experiment == "wardround"


def test_without_mlflow_the_daemon_logs_one_line_that_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "server.toml"
    path.write_text(config_text("x", ("localhost",), 9092))
    assert sink.tracking_child(tmp_path, read_toml(path, ServerConfig)) == [], "off by default"
    path.write_text(path.read_text().replace('mlflow_uri = ""', f'mlflow_uri = "{URI}"'))
    config = read_toml(path, ServerConfig)
    monkeypatch.setattr(sink, "installed", lambda: False)
    assert sink.tracking_child(tmp_path, config) == []
    assert len(caplog.messages) == 1 and "lock/mlflow.txt" in caplog.messages[0]
    monkeypatch.setattr(doctor, "installed", lambda: False)
    check = doctor.tracking(config)
    assert (check.state, check.name) == ("note", "tracking") and "operator.md" in check.todo
    monkeypatch.setattr(sink, "installed", lambda: True)
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "t")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    (child,) = sink.tracking_child(tmp_path, config)
    assert child.environment["MLFLOW_TRACKING_TOKEN"] == "t" and "AWS_SECRET_ACCESS_KEY" not in child.environment


# The real MLflow


@pytest.fixture(scope="module")
def mlflow() -> Path:
    """The folder with what lock/mlflow.txt names, beside this installation and not in it."""
    return beside(ROOT / "lock" / "mlflow.txt")


@pytest.mark.slow
def test_the_real_mlflow_keeps_a_run_in_a_folder_and_a_server_that_does_not_answer_ends_soon(
    mlflow: Path, finished: RunFolder, tmp_path: Path
) -> None:
    uri = f"file://{tmp_path}/mlflow"
    code = (
        "import json, sys; sys.path.append(sys.argv[1])\n"
        "from pathlib import Path\n"
        "from wardround_server.runs.folder import RunFolder\n"
        "from wardround_server.tracking.mlflow_store import mlflow_store\n"
        "from wardround_server.tracking.sink import write_run\n"
        "store = mlflow_store(sys.argv[2], 'wardround')\n"
        "for _ in range(2):\n"
        "    write_run(RunFolder(path=Path(sys.argv[3])), sys.argv[2], store)\n"
        "client, (run,) = store._client, store._client.search_runs([store._experiment])\n"
        "history = [one.step for one in client.get_metric_history(run.info.run_id, 'bytes_up')]\n"
        "print(json.dumps([run.info.run_name, run.info.status, run.data.params, run.data.metrics, history]))\n"
    )
    command = [sys.executable, "-c", code, str(mlflow), uri, str(finished.path)]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    name, status, parameters, figures, history = json.loads(done.stdout)
    assert (name, status, history) == (finished.run_id, "FINISHED", [1, 2])
    assert parameters["study_sha256"] == finished.study().sha256()
    assert figures["sites_counted"] == 2 and figures["result.rounds_completed"] == 2
    refused = [sys.executable, "-c", code, str(mlflow), "http://127.0.0.1:9", str(finished.path)]
    done = subprocess.run(refused, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "Error" in done.stderr


@pytest.mark.slow
def test_the_program_writes_until_it_is_asked_to_end(mlflow: Path, finished: RunFolder, tmp_path: Path) -> None:
    text = config_text("x", ("localhost",), 9092)
    text = text.replace('mlflow_uri = ""', f'mlflow_uri = "file://{tmp_path}/mlflow"')
    (finished.server / "server.toml").write_text(text)
    code = "import sys; sys.path.append(sys.argv.pop(1)); from wardround_server.tracking.sink import main; main()"
    command = [sys.executable, "-c", code, str(mlflow), str(finished.server)]
    process = subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        for _ in range(600):
            known = sink.read_json(finished.path / "tracking.json")
            if process.poll() is not None or (known and known["status"] == "FINISHED"):
                break
            threading.Event().wait(0.1)
        process.terminate()
        out, _ = process.communicate(timeout=30)
    finally:
        process.kill()
    assert (process.returncode, out) == (0, b"")
    assert known is not None and known["round"] == 2 and mlflow_store.RUN_TAG in str(list(tmp_path.rglob("*")))


def environment() -> dict[str, str]:
    rooms = os.pathsep.join(str(ROOT / room) for room in ("shared", "server"))
    return {"PATH": os.environ["PATH"], "PYTHONPATH": rooms}
