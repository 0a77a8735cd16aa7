"""A task process that hangs at one hospital costs that hospital a few rounds, and the run continues."""

import os
import signal
import sqlite3
import time
from pathlib import Path

import pytest
from builders.federation import NAMES, STUDY, Federation, approve, command, command_code, deadline_s
from builders.processes import alive, descendants

from wardround.study.load import load_study
from wardround.wire.protocol import TTL_BEYOND_DEADLINE_S
from wardround_client.flower.executor import BEFORE_TTL_S
from wardround_client.flower.task_process import PROCESS_NAME
from wardround_client.ledger.ledger import Ledger

pytestmark = pytest.mark.slow

ROUNDS = 4
STEPS = "local_steps = 600"  # some seconds of training, so that there is a middle to stop in


def task_of(daemon: int) -> int | None:
    """The task process of a site's daemon, if there is one now."""
    for pid in descendants(daemon):
        try:
            if Path(f"/proc/{pid}/comm").read_text().strip() == PROCESS_NAME:
                return pid
        except OSError:
            continue
    return None


def entries(folder: Path) -> int:
    """How many entries a site's ledger has; 0 where there is none yet."""
    try:
        with sqlite3.connect(f"file:{folder / 'ledger.sqlite3'}?mode=ro", uri=True) as connection:
            return connection.execute("SELECT count(*) FROM entries").fetchone()[0]
    except sqlite3.Error:
        return 0


def stopped_in_the_middle(federation: Federation, name: str) -> int:
    """SIGSTOP a site's task between the charge of its first attempt and its settlement; the process."""
    opened_held_and_charged, ends = 3, time.monotonic() + 600
    while time.monotonic() < ends:
        if entries(federation.folders[name]) >= opened_held_and_charged and (
            task := task_of(federation.processes[name].pid)
        ):
            os.kill(task, signal.SIGSTOP)
            time.sleep(0.5)
            (attempt,) = Ledger(federation.folders[name] / "ledger.sqlite3").attempts()
            assert attempt.reply_sha256 is None, "the task was done before it was stopped"
            return task
        time.sleep(0.03)
    pytest.fail(f"no task of {name} was seen\n{federation.logs()}")


def all_there(federation: Federation) -> None:
    """Wait until every site says that it is well: it is registered, so the first proposal reaches it."""
    ends = time.monotonic() + 600
    while any(command_code("client", "health", "--site", folder) for folder in federation.folders.values()):
        assert time.monotonic() < ends, federation.logs()
        time.sleep(1)


def test_a_task_that_hangs_in_the_middle_is_killed_and_its_site_named_late_then_back(tmp_path) -> None:
    path = tmp_path / "tiny.toml"
    limit_s = deadline_s()
    text = STUDY.format(rounds=ROUNDS, min_sites=2).replace("round_deadline_s = 90", f"round_deadline_s = {limit_s}")
    path.write_text(text.replace("learning_rate = 0.1", f"learning_rate = 0.01\n{STEPS}"))
    study, federation = load_study(path), Federation(tmp_path)
    try:
        for folder in federation.folders.values():
            approve(path, folder)
        for name in ("server", *NAMES):
            federation.start(name)
        all_there(federation)
        run = command("server", "submit", path, "--server", federation.server)["run"]
        hung, stopped = stopped_in_the_middle(federation, "east"), time.monotonic()
        longest_s = limit_s + TTL_BEYOND_DEADLINE_S - BEFORE_TTL_S + 10
        while alive({hung}):
            assert time.monotonic() - stopped < longest_s, "nobody killed the task"
            time.sleep(0.5)
        seconds = time.monotonic() - stopped
        print(f"the task that hung was killed {seconds:.0f} s after it was stopped; its round had {limit_s} s")
        found = federation.wait_for(lambda run: run["state"] == "finished", 900)
    finally:
        for name in list(federation.processes):
            federation.stop(name)
    codes = {name: [line["code"] for line in found["metrics"] if line["site"] == name] for name in NAMES}
    print(codes)
    assert found["run"] == run and codes["north"] == codes["west"] == [None] * ROUNDS
    back = codes["east"].index(None)
    assert 1 <= back <= 2 and codes["east"][back:] == [None] * (ROUNDS - back)
    assert set(codes["east"][:back]) <= {"late", "failed"}  # "failed": Flower missed the task's heartbeat before
    ledger = Ledger(federation.folders["east"] / "ledger.sqlite3")
    attempts = ledger.attempts(study.sha256(), run)
    assert attempts[0].reply_sha256 is None and sum(one.reply_sha256 is not None for one in attempts) == ROUNDS - back
    assert "and is killed" in (federation.folders["east"] / "logs" / "site.log").read_text()
