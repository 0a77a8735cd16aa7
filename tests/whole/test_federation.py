"""A real federation on this machine: one server and three hospitals as separate processes, over TLS.

These tests start every process in its own session and end it by its id.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from builders.federation import NAMES, STUDY, Federation, approve, command, command_code
from builders.processes import alive, descendants

from wardround.flower.environment import flower_environment
from wardround.records.audit_log import verified
from wardround.storage.checkpoint import load_checkpoint
from wardround.study.load import load_study
from wardround.wire.packets import PROTOCOL_VERSION
from wardround_client.ledger.ledger import Ledger

pytestmark = pytest.mark.slow


@pytest.fixture
def federation(tmp_path):
    made = Federation(tmp_path)
    try:
        yield made
    finally:
        for name in list(made.processes):
            made.stop(name)


def in_process(study, folders) -> dict[str, np.ndarray]:
    """The same run by function calls."""
    from wardround_client.sources.cohort import open_cohort
    from wardround_client.training.rows import training_rows
    from wardround_simulation.engine.in_process import Hospital, temporary_site, train_together

    sites, admitted = [], {}
    for name, folder in folders.items():
        cohort = open_cohort(folder / "cohort")
        hospital = Hospital(name=name, cohort=cohort, inputs_N=cohort.values_N)
        rows_N = training_rows(study, cohort)
        sites.append(temporary_site(study, name, [(hospital, rows_N)], admitted))
    return train_together(study, sites)


def test_a_federation_of_processes_equals_the_same_run_by_function_calls_bit_for_bit_and_leaves_no_process(
    federation, tmp_path
):
    """From the proposal on: two sites approve before it comes, one after; a SuperNode is killed meanwhile."""
    path = tmp_path / "tiny.toml"
    path.write_text(STUDY.format(rounds=2, min_sites=3))
    study = load_study(path)
    for name in ("east", "north"):
        command(
            "client", "studies", "approve", path, "--yes", "--by", "Ada Lovelace", "--site", federation.folders[name]
        )
    for name in ("server", *NAMES):
        federation.start(name)
    submitted = command("server", "submit", path, "--server", federation.server)
    assert command("server", "submit", path, "--server", federation.server)["run"] == submitted["run"]
    run = federation.wait_for(lambda run: len(run["words"]) == 3, 90)
    assert run["words"] == {"east": "approved", "north": "approved", "west": "proposed"} and run["state"] == "proposed"
    proposal = federation.folders["west"] / "proposals" / f"{study.sha256()}.json"
    assert proposal.is_file() and not (federation.folders["west"] / "ledger.sqlite3").exists()

    supernode = next(
        pid for pid in descendants(federation.processes["east"].pid)
        if b"flower-supernode" in Path(f"/proc/{pid}/cmdline").read_bytes()
    )  # fmt: skip
    os.kill(supernode, signal.SIGKILL)
    approve(study.sha256()[:12], federation.folders["west"])
    run = federation.wait_for(lambda run: run["state"] == "finished", 300)
    assert [line["code"] for line in run["metrics"]] == [None] * 6

    model, manifest = load_checkpoint(federation.server / "runs" / run["run"] / "model.safetensors")
    expected = in_process(study, federation.folders)
    assert {name: model[name].tobytes() for name in expected} == {n: a.tobytes() for n, a in expected.items()}
    assert manifest["study_sha256"] == study.sha256()
    started = {pid for process in federation.processes.values() for pid in descendants(process.pid)}
    assert len(started) >= 2 * len(NAMES) + 2
    assert {name: federation.stop(name) for name in list(federation.processes)} == dict.fromkeys(("server", *NAMES), 0)
    assert alive(started) == set()


def test_a_run_goes_on_after_its_server_was_killed_in_the_middle_and_charges_no_attempt_twice(federation, tmp_path):
    """kill -9 of the SuperLink while a round is on its way, then of the whole daemon, which is started again."""
    path = tmp_path / "tiny.toml"
    path.write_text(STUDY.format(rounds=3, min_sites=1).replace("nominal_sites = 3", "nominal_sites = 1"))
    approve(path, federation.folders["east"])
    federation.start("server")
    federation.start("east")
    run = command("server", "submit", path, "--server", federation.server)["run"]
    federation.wait_for(lambda run: run["round"] == 1, 150)
    superlink = next(
        pid for pid in descendants(federation.processes["server"].pid)
        if b"flower-superlink" in Path(f"/proc/{pid}/cmdline").read_bytes()
    )  # fmt: skip
    os.kill(superlink, signal.SIGKILL)
    federation.wait_for(lambda run: run["round"] == 2, 150)
    federation.processes["server"].kill()
    federation.processes["server"].wait()
    federation.start("server")
    found = federation.wait_for(lambda run: run["state"] == "finished", 200)
    assert found["run"] == run and [line["round"] for line in found["metrics"] if line["code"] is None] == [1, 2, 3]
    ledger = Ledger(federation.folders["east"] / "ledger.sqlite3")
    attempts = ledger.attempts(found["study_sha256"], run)
    assert len(attempts) == 3 and all(attempt.reply_sha256 for attempt in attempts)


def test_nothing_outlives_a_daemon_that_was_killed(federation):
    federation.start("server")
    federation.start("east")
    time.sleep(15)
    started = {pid for process in federation.processes.values() for pid in descendants(process.pid)}
    assert len(started) >= 4
    for process in federation.processes.values():
        process.kill()
        process.wait()
    federation.processes.clear()
    ends = time.monotonic() + 20
    while alive(started) and time.monotonic() < ends:
        time.sleep(0.5)
    assert alive(started) == set()


HOSTILE_SERVER = """
import json, os, time
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import ServerApp

app = ServerApp()

@app.main()
def main(grid, context):
    node = next(iter(grid.get_node_ids()))
    header = {"protocol": PROTOCOL, "kind": "broadcast", "study_sha256": "a" * 64, "run_id": "run", "round": 1,
              "architecture_sha256": "b" * 64}
    zero = Array("float32", (1,), "raw", bytes(4))
    asked = {
        "train": RecordDict({"header": ConfigRecord(header), "tensors": ArrayRecord({"w": zero})}),
        "train.own": RecordDict({}),
    }
    said = {}
    for kind, content in asked.items():
        (sent,) = grid.push_messages([Message(content, dst_node_id=node, message_type=kind, ttl=120)])
        ends = time.time() + 100
        while kind not in said and time.time() < ends:
            for reply in grid.pull_messages([sent]):
                said[kind] = dict(reply.content["header"])["code"] if reply.has_content() else str(reply.error)
            time.sleep(0.5)
    open(os.path.join(os.environ["WARDROUND_SERVER"], "said.json"), "w").write(json.dumps(said))
"""


def test_a_bundle_with_code_of_its_own_runs_none_of_it_at_a_hospital_and_an_unapproved_study_is_refused(federation):
    """The operator is the attacker: own server code, and a bundle whose packages have the names of ours and torch's."""
    ran = federation.server / "ran.txt"  # the attacker's own machine may run it; whose FLWR_HOME it is tells them apart
    bundle = federation.server / "hostile"
    runs = f"import os\nopen({str(ran)!r}, 'a').write(os.environ['FLWR_HOME'] + chr(10))\n"
    files = {
        "pyproject.toml": '[project]\nname = "hostile"\nversion = "1.0.0"\nlicense = "MIT"\n'
        '[tool.flwr.app]\npublisher = "x"\n[tool.flwr.app.components]\nserverapp = "evil:app"\n'
        'clientapp = "wardround_client.flower.site_app:app"\n',
        "evil.py": HOSTILE_SERVER.replace("PROTOCOL", str(PROTOCOL_VERSION)),
        "torch.py": runs,
        "wardround_client/__init__.py": runs,
        "wardround_client/flower/site_app.py": runs + "app = None\n",
    }
    for name, content in files.items():
        (bundle / name).parent.mkdir(parents=True, exist_ok=True)
        (bundle / name).write_text(content)
    federation.start("server")
    federation.start("east")
    folder = federation.folders["east"]
    ends = time.monotonic() + 90
    while command_code("client", "health", "--site", folder) != 0 and time.monotonic() < ends:
        time.sleep(1)  # SERVING: registered, server answers, data readable, budget left
    home = federation.server / "flower"
    environment = flower_environment(home)
    done = subprocess.run(
        [str(Path(sys.executable).parent / "flwr"), "run", str(bundle), "wardround", "--format", "json"],
        env=environment, cwd=home, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert json.loads(done.stdout[done.stdout.find("{") :])["success"], done.stderr
    ends = time.monotonic() + 180
    while not (federation.server / "said.json").exists():
        assert time.monotonic() < ends, federation.logs()
        time.sleep(1)
    time.sleep(0.5)
    said = json.loads((federation.server / "said.json").read_text())
    assert said == {"train": "not_approved", "train.own": "question"}
    assert not ran.exists() or set(ran.read_text().split()) == {str(home)}
    assert not (folder / "flower" / "apps").exists() and list(Ledger(folder / "ledger.sqlite3").holds()) == []
    refused = [entry for entry in verified(folder / "audit.jsonl").entries if entry["event"] == "message-refused"]
    assert [entry["code"] for entry in refused] == ["not_approved", "question"]
