"""The boundary between Flower and a hospital: no bundle's code runs, and foreign messages are refused.

Tasks that hang are killed.

The tests run Flower's own functions. Where this project replaces something inside Flower, a test compares the
replacement with the original, so that another version of Flower fails here and not at a hospital.
"""

import dataclasses
import hashlib
import inspect
import io
import os
import socket
import subprocess
import sys
import threading
import time
import zipfile
from contextlib import contextmanager
from multiprocessing import Pipe
from pathlib import Path

import pytest
import uvicorn
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.supercore.constant import TaskType
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run
from flwr.supercore.superexec import run_superexec
from flwr.supercore.superexec.executor import get_executor
from flwr.supercore.superexec.executor.subprocess_executor import SubprocessExecutor
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode import start_client_internal
from flwr.supernode.main import create_app
from flwr.supernode.nodestate import NodeStateFactory
from flwr.supernode.runtime import run_clientapp

from wardround.errors import WireError
from wardround.flower.environment import flower_environment
from wardround.processes.supervisor import Child, supervise
from wardround.records.audit_log import verified
from wardround.study.load import parse_study
from wardround.wire.packets import packet_from, unpack_answer
from wardround.wire.proposal import pack_proposal, pack_state, unpack_proposal, unpack_state
from wardround.wire.protocol import PROPOSE
from wardround_client.flower import executor as executor_module
from wardround_client.flower import task_process
from wardround_client.flower.executor import SiteExecutor, run_executor
from wardround_client.flower.message_limit import BoundedLink
from wardround_client.flower.site_app import site_app
from wardround_client.site.paths import PROOFS
from wardround_client.studies import proposals
from wardround_client.studies.approvals import decide_against, find_study
from wardround_client.studies.store import store_approved

STUDY = parse_study(
    {
        "study": {"name": "tiny", "rounds": 2},
        "data": {"labels": ("benign", "malignant")},
        "privacy": {"epsilon": 8.0, "delta": 1e-5, "max_grad_norm": 1.0, "nominal_patients": 100},
        "aggregation": {"nominal_sites": 3},
    }
)
CONTEXT = Context(run_id=1, node_id=2, node_config={}, state=RecordDict(), run_config={})


@pytest.fixture(autouse=True)
def identity(monkeypatch):
    """Who Flower thinks that this process is, as in a task."""
    for name, number in (("_task_id", 7), ("_run_id", 1), ("_node_id", 2)):
        monkeypatch.setattr(TaskIdentity, name, number)


def message(kind, content=None, ttl=60.0):
    records = {name: ConfigRecord(dict(fields)) for name, fields in (content or {}).items()}
    made = Message(RecordDict(records), dst_node_id=2, message_type=kind, ttl=ttl)
    made.metadata.__dict__["_message_id"] = "asked"
    return made


def code_in(reply):
    return unpack_answer(packet_from(reply.content), None)[1]


# What is replaced inside Flower is what we think it is


def test_flower_has_what_the_gate_replaces():
    source = inspect.getsource(run_clientapp.run_clientapp)
    assert "install_from_fab(fab.content" in source and "get_load_client_app_fn(" in source
    assert source.count("Error(code=e_code, reason=reason)") == source.count(" Error(") + source.count("(Error(") == 1
    assert "get_executor(" in inspect.getsource(run_superexec.run_superexec)
    ours, theirs = SiteExecutor, SubprocessExecutor
    methods = {name for name in vars(theirs) if not name.startswith("_")}
    assert methods == {name for name in vars(ours) if not name.startswith("_")}
    accepted = inspect.signature(run_clientapp.run_clientapp).parameters
    assert {"runtime_api_address", "token", "insecure", "certificates", "runtime_dependency_install"} <= set(accepted)
    accepted = inspect.signature(run_superexec.run_superexec).parameters
    assert {"runtime_api_address", "insecure", "superexec_auth_secret", "runtime_dependency_install"} <= set(accepted)
    assert callable(get_executor)


HOSTILE = {
    "pyproject.toml": '[project]\nname = "x"\nversion = "1"\n[tool.flwr.app]\npublisher = "x"\n'
    '[tool.flwr.app.components]\nserverapp = "a:b"\nclientapp = "wardround_client.flower.site_app:app"\n',
    "wardround_client/__init__.py": "open('RAN', 'w').write('ran')\n",
    "wardround_client/flower/site_app.py": "app = None\n",
    "torch.py": "open('RAN', 'w').write('ran')\n",
}

ONE_TASK = """
import functools, sys
from pathlib import Path
from flwr.supernode.runtime import run_clientapp as inside
folder, bundle, closed = Path(sys.argv[1]), Path(sys.argv[2]).read_bytes(), sys.argv[3] == "closed"
if closed:
    from wardround_client.flower import task_process
    task_process.refuse_other_tasks(lambda message, context: "ours")
inside.install_from_fab(bundle, skip_prompt=True)
load = inside.get_load_client_app_fn(default_app_ref="", app_path=None, multi_app=True)
import hashlib
app = load("x/x", "1", hashlib.sha256(bundle).hexdigest())
import importlib.util, wardround_client
print(importlib.util.find_spec("torch").origin, app(None, None) if closed else "theirs")
"""


@pytest.mark.parametrize("closed", [True, False])
def test_a_bundle_with_a_package_of_our_name_runs_only_where_the_gate_is_open(tmp_path, closed):
    """The open gate is Flower as it comes: the attack is real, and only the gate stops it."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        listed = []
        for name, text in HOSTILE.items():
            archive.writestr(name, text)
            listed.append(f"{name},{hashlib.sha256(text.encode()).hexdigest()},{8 * len(text)}")
        archive.writestr(".info/CONTENT", "\n".join(listed) + "\n")
    (tmp_path / "x.fab").write_bytes(content.getvalue())
    words = [str(tmp_path), str(tmp_path / "x.fab"), "closed" if closed else "open"]
    done = subprocess.run(
        [sys.executable, "-I", "-c", ONE_TASK, *words],
        cwd=tmp_path,
        env={"FLWR_HOME": str(tmp_path / "home"), "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=120,
    )
    if closed:
        assert done.stdout.strip().endswith("site-packages/torch/__init__.py ours"), done.stderr
        assert not (tmp_path / "RAN").exists() and not (tmp_path / "home" / "apps").exists()
    else:
        assert (tmp_path / "RAN").exists(), done.stderr


@pytest.mark.parametrize("kind", [kind for kind in TaskType if kind != TaskType.CLIENT_APP])
def test_a_task_of_another_type_is_answered_with_a_refusal(tmp_path, kind):
    reads, writes = Pipe(duplex=False)
    asked = message(PROPOSE, pack_proposal(STUDY))
    reply = task_process._behind_the_gate(tmp_path, str(kind), writes, tmp_path / "proofs", asked, CONTEXT)
    assert code_in(reply) == "task_type" and not (tmp_path / "proposals").exists()
    assert float(reads.recv_bytes(64)) == pytest.approx(asked.metadata.created_at + 60.0)


def test_no_text_of_an_exception_passes_the_gate(tmp_path, monkeypatch):
    def fails(folder, proofs):
        raise OSError("/data/CANARY^PATIENT.dcm")

    monkeypatch.setattr("wardround_client.flower.site_app.site_app", fails)
    writes = Pipe(duplex=False)[1]
    reply = task_process._behind_the_gate(
        tmp_path, str(TaskType.CLIENT_APP), writes, tmp_path, message("train"), CONTEXT
    )
    assert code_in(reply) == "failed" and "CANARY" not in str(reply.content)


# Tasks are processes that end


LAUNCHED = """
import pathlib, sys, time
from flwr.supercore.constant import TaskType
from flwr.supercore.superexec.executor.types import ExecutionSpec
from wardround_client.site.paths import PROOFS
from wardround_client.flower.executor import SiteExecutor, run_executor

if __name__ == "__main__":
    executor = SiteExecutor(pathlib.Path(sys.argv[1]))
    assert executor.get_eligible_capacity(set())[0] == set(TaskType)
    executor.launch(ExecutionSpec(
        task_type=TaskType.CLIENT_APP, runtime_api_address=sys.argv[2], token="SECRET" + "TOKEN", insecure=True,
        root_certificates_path=None, runtime_dependency_install=False, parent_pid=None, suppress_output=False, task_id=7
    ))
    (task,) = executor._running
    executor.reconcile()
    print(task.process.pid, flush=True)
    if sys.stdin.readline() == "late\\n":
        task.ends = time.time() - 1
        executor.reconcile()
        task.process.join(10)
        executor.reconcile()
        print(len(executor._running), task.process.exitcode, flush=True)
    sys.stdin.readline()
"""


@contextmanager
def launched(folder):
    """A process with an executor that has launched a task, which waits for a SuperNode that never answers; both."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        script = folder / "launched.py"
        script.write_text(LAUNCHED.replace("\\\\n", "\\n"))
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with subprocess.Popen(
            [sys.executable, script, folder, address], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            try:
                task, ends = int(process.stdout.readline()), time.monotonic() + 60
                while Path(f"/proc/{task}/comm").read_text().strip() != task_process.PROCESS_NAME:
                    assert time.monotonic() < ends
                    time.sleep(0.01)
                yield process, task
            finally:
                process.kill()


def seen(task):
    """What anybody on the machine can see of a process."""
    return b"".join(Path(f"/proc/{task}/{name}").read_bytes() for name in ("cmdline", "environ", "comm"))


def test_a_task_that_hangs_is_killed_at_its_deadline_and_its_token_is_on_no_command_line(tmp_path):
    with launched(tmp_path) as (process, task):
        assert b"SECRETTOKEN" not in seen(task) and b"multiprocessing" in seen(task)
        process.stdin.write("late\n")
        process.stdin.flush()
        assert process.stdout.readline() == "0 -9\n"
        assert not Path(f"/proc/{task}").exists()


def test_a_task_dies_with_its_executor_however_that_ends(tmp_path):
    with launched(tmp_path) as (process, task):
        warm = int(Path(f"/proc/{task}/stat").read_text().rsplit(")", 1)[1].split()[1])
        assert Path(f"/proc/{warm}/comm").read_text() == "wardround-warm\n"
        process.kill()
        ends = time.monotonic() + 20
        while Path(f"/proc/{task}").exists() or Path(f"/proc/{warm}").exists():
            assert time.monotonic() < ends
            time.sleep(0.02)


def test_what_an_earlier_start_proved_counts_no_more_and_where_it_stays_nothing_starts(tmp_path, monkeypatch):
    proof = tmp_path / PROOFS / "study" / "proof"
    proof.parent.mkdir(parents=True)
    proof.touch()

    def begun(*args):
        raise InterruptedError("it goes on to take tasks")

    monkeypatch.setattr(executor_module, "SiteExecutor", begun)
    with monkeypatch.context() as disk:
        disk.setattr("shutil.rmtree", lambda path: os.rmdir(path))  # as a folder that cannot be removed
        with pytest.raises(OSError, match="not empty"):
            run_executor(tmp_path, "127.0.0.1:9", tmp_path / "secret")
    assert proof.exists()
    with pytest.raises(InterruptedError):
        run_executor(tmp_path, "127.0.0.1:9", tmp_path / "secret")
    assert not proof.exists()


def test_what_is_forked_shares_no_thread_no_device_and_no_secret():
    """All forks start as copies of one process: a secret made in it would be the same in every task."""
    look = """
import gc, importlib, threading, torch
from wardround_client.flower.executor import WARM
for name in WARM:
    importlib.import_module(name)
from wardround_client.privacy.secure_random import SecretRandom
assert threading.active_count() == 1 and not torch.cuda.is_initialized()
assert not [one for one in gc.get_objects() if isinstance(one, SecretRandom)]
from wardround_client.flower import client_app  # what a round needs is among them
from wardround_client.rounds import evaluation, training
"""
    subprocess.run([sys.executable, "-I", "-c", look], check=True, timeout=120)


DRAWS = """
import multiprocessing, sys
from wardround_client.flower.executor import WARM

def draw(writes):
    from wardround_client.privacy.secure_random import SecretRandom
    writes.send_bytes(SecretRandom().uniform(4).tobytes())

if __name__ == "__main__":
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload(WARM)
    for _ in range(2):
        reads, writes = forks.Pipe(duplex=False)
        forks.Process(target=draw, args=(writes,)).start()
        print(reads.recv_bytes().hex())
"""


def test_two_forks_draw_different_secret_numbers(tmp_path):
    script = tmp_path / "draws.py"
    script.write_text(DRAWS)
    said = subprocess.run([sys.executable, script], check=True, timeout=120, capture_output=True, text=True).stdout
    first, second = said.split()
    assert len(first) == len(second) == 64 and first != second


def test_a_program_that_dies_starts_again_and_all_ends_with_the_supervisor(tmp_path):
    script = (
        f"import os, time; open({str(tmp_path / 'starts')!r}, 'a').write(str(os.getpid()) + chr(10)); time.sleep(300)"
    )
    child = Child(name="child", command=(sys.executable, "-c", script), environment={}, folder=tmp_path)
    stopped, ends = threading.Event(), time.monotonic() + 30

    def starts():
        return (
            [int(line) for line in (tmp_path / "starts").read_text().split()] if (tmp_path / "starts").exists() else []
        )

    def each():
        if len(starts()) == 1 and child.pid == starts()[0]:
            os.kill(child.pid, 9)
        if len(starts()) == 2 or time.monotonic() > ends:
            stopped.set()

    supervise([child], stopped, each)
    assert len(starts()) == 2 and child.restarts == 1
    assert not any(Path(f"/proc/{pid}").exists() for pid in starts())


# Proposals


def test_a_proposal_is_kept_for_a_person_and_answered_with_one_word(tmp_path):
    app, sha256 = site_app(tmp_path), STUDY.sha256()

    def word():
        reply = app(message(PROPOSE, pack_proposal(STUDY)), CONTEXT)
        assert set(reply.content["decision"]) == {"protocol", "study_sha256", "state"}
        return unpack_state(reply.content, sha256)

    assert word() == "proposed" and (tmp_path / "proposals" / f"{sha256}.json").is_file()
    decide_against(tmp_path, find_study(tmp_path, sha256), "refused", "Ada Lovelace")
    assert word() == "refused"
    (tmp_path / "decisions" / f"{sha256}.json").unlink()
    store_approved(tmp_path, STUDY)
    assert word() == "approved"
    decide_against(tmp_path, find_study(tmp_path, sha256), "revoked", "Ada Lovelace")
    assert word() == "revoked"


@pytest.mark.parametrize("change, code", [
    ({"study": "{"}, "wire-study"),
    ({"study": "[" * 100_000}, "wire-study"),
    ({"study": "x" * 300_000}, "wire-size"),
    ({"study": STUDY.to_json().replace('"rounds": 2', '"rounds": 200')}, "wire-hash"),
    ({"study": STUDY.to_json().replace('"phantom"', '"/etc/shadow.safetensors"')}, "wire-file"),
    ({"protocol": 99}, "version-site-older"),
    ({"protocol": 1}, "version-server-older"),
    ({"protocol": "99"}, "version-server-older"),
    ({"more": 1}, "wire-header"),
])  # fmt: skip
def test_a_proposal_that_is_not_one_is_refused_by_a_code_and_kept_nowhere(tmp_path, change, code):
    record = {"proposal": {**pack_proposal(STUDY)["proposal"], **change}}
    assert code_in(site_app(tmp_path)(message(PROPOSE, record), CONTEXT)) == code
    assert [entry["code"] for entry in verified(tmp_path / "audit.jsonl").entries] == [code]
    assert not (tmp_path / "proposals").exists()


def test_a_server_cannot_fill_a_hospitals_disk_with_proposals(tmp_path, monkeypatch):
    monkeypatch.setattr(proposals, "MOST_UNDECIDED", 1)
    (tmp_path / "proposals").mkdir()
    (tmp_path / "proposals" / "other.json").write_text("{}")
    assert code_in(site_app(tmp_path)(message(PROPOSE, pack_proposal(STUDY)), CONTEXT)) == "too_many_proposals"


def test_a_question_of_another_kind_is_refused_before_anything_is_opened(tmp_path):
    for kind in ("query.whoami", "query", "train.other", "evaluate.other"):
        assert code_in(site_app(tmp_path)(message(kind), CONTEXT)) == "question"
    assert {path.name for path in tmp_path.iterdir()} <= {"audit.jsonl", "audit.head", "audit.refused"}


def test_a_word_about_another_study_or_of_another_language_is_not_taken():
    for record, sha256 in ((pack_state("a" * 64, "approved"), "b" * 64), (pack_state("a" * 64, "yes"), "a" * 64)):
        with pytest.raises(WireError):
            unpack_state(record, sha256)
    assert unpack_proposal(pack_proposal(STUDY)).sha256() == STUDY.sha256()


# The executor and its task, as processes, against a SuperNode's own interface

BUNDLE = {
    TaskType.CLIENT_APP: 'serverapp = "a:b"\nclientapp = "evil:app"\n',
    TaskType.AGENT_APP: 'agentapp = "evil:app"\n',
}


@pytest.mark.parametrize("kind, fab_id", [*((kind, "x/x") for kind in BUNDLE), (TaskType.CLIENT_APP, "CANARY")])
def test_a_supernodes_task_is_answered_by_us_and_an_agents_is_refused(tmp_path, monkeypatch, kind, fab_id):
    """Flower's own code takes the message in, makes the task and serves it; the bundle's code is never looked at."""
    secret = tmp_path / "secret"
    secret.write_bytes(b"s" * 32)
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        head = '[project]\nname = "x"\nversion = "1"\n[tool.flwr.app]\npublisher = "x"\n[tool.flwr.app.components]\n'
        archive.writestr("pyproject.toml", head + BUNDLE[kind])
        archive.writestr("evil.py", "raise SystemExit\n")
    bundle = Fab(hashlib.sha256(content.getvalue()).hexdigest(), content.getvalue(), {})
    factory = NodeStateFactory(objectstore_factory=ObjectStoreFactory())
    state, store = factory.state(), factory.objectstore_factory.store()
    state.set_node_id(2)
    asked = message(PROPOSE, pack_proposal(STUDY))
    asked.metadata.__dict__["_message_id"] = asked.object_id
    objects, tree = get_all_nested_objects(asked), get_object_tree(asked)
    run = dataclasses.replace(
        Run.create_empty(1),
        fab_id=fab_id,
        fab_version="1",
        fab_hash=bundle.hash_str,
        primary_task_type=str(kind),
        series_id=1,
    )
    link = (
        2, lambda: (remove_content_from_message(asked), tree), None, lambda run_id: run, lambda name, run_id: bundle,
        lambda run_id, object_id: objects[object_id].deflate(), None, lambda run_id, message_id: None,
    )  # fmt: skip
    if fab_id != "CANARY":  # as a hospital has it: nothing of the bundle comes this far
        monkeypatch.setattr(start_client_internal, "get_fused_config_from_fab", lambda *bundle_and_run: {})
        link = BoundedLink(tmp_path, link).functions()
    start_client_internal._pull_and_store_message(
        state=state,
        object_store=store,
        node_config={},
        receive=link[1],
        get_run=link[3],
        get_fab=link[4],
        pull_object=link[5],
        confirm_message_received=link[7],
        trusted_entities=None,
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(
        uvicorn.Config(
            create_app(factory, secret.read_bytes()), host="127.0.0.1", port=port, log_level="error", ws="none"
        )
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    words = [str(tmp_path), f"127.0.0.1:{port}", str(secret)]
    executor = subprocess.Popen(
        [sys.executable, "-I", "-m", "wardround_client.flower.executor", *words],
        env=flower_environment(tmp_path / "flower"),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        ends = time.monotonic() + 90
        while not (replies := state.get_messages(is_reply=True)) and time.monotonic() < ends:
            time.sleep(0.2)
    finally:
        executor.terminate()
        said = executor.communicate(timeout=30)[0]
        server.should_exit = True
        thread.join(30)
    if fab_id == "CANARY":  # what Flower itself stumbles over reaches the server without a text
        assert "CANARY" in said and replies[0].error.reason == "failed"
        return
    assert len(replies) == 1 and not replies[0].has_error(), said
    kept, refused = (tmp_path / "proposals").exists(), (tmp_path / "audit.jsonl").exists()
    assert (kept, refused) == ((True, False) if kind == TaskType.CLIENT_APP else (False, True)), said
    if refused:
        assert [entry["code"] for entry in verified(tmp_path / "audit.jsonl").entries] == ["task_type"]
    assert not (tmp_path / "flower" / "apps").exists() and secret.read_text() not in said
