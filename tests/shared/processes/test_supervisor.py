"""Which child process ends with which other, and that a folder has one daemon. The children are real processes."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from wardround.errors import WardroundError
from wardround.processes.supervisor import Child, sole, supervise
from wardround_server.operations.daemon import ending_with


def sleeper(name: str, folder: Path) -> Child:
    return Child(
        name=name, command=(sys.executable, "-c", "import time; time.sleep(300)"), environment={}, folder=folder
    )


@pytest.mark.parametrize(("killed", "other_ends"), [("superlink", True), ("executor", False)])
def test_a_phase_ends_with_the_superlink_it_began_at_and_a_superlink_does_not_end_with_a_phase(
    tmp_path, killed, other_ends
) -> None:
    children = {name: sleeper(name, tmp_path) for name in ("superlink", "executor")}
    first: dict[str, int] = {}
    stopped, ends, again = threading.Event(), time.monotonic() + 60, ending_with(*children.values())

    def each() -> None:
        again()
        pids = {name: child.pid for name, child in children.items()}
        if not first and all(pids.values()):
            first.update(pids)
            os.kill(pids[killed], signal.SIGKILL)
        back = first and all(pids.values()) and pids[killed] != first[killed]
        other = "executor" if killed == "superlink" else "superlink"
        if time.monotonic() > ends or (back and (pids[other] != first[other]) == other_ends):
            stopped.set()

    supervise(list(children.values()), stopped, each)
    assert time.monotonic() < ends, "the children did not come back"
    assert {name: child.restarts for name, child in children.items()} == {
        "superlink": int(killed == "superlink"),
        "executor": 1,
    }
    assert not any(Path(f"/proc/{pid}").exists() for pid in first.values())


def test_a_folder_has_one_daemon_and_who_has_patience_follows_it(tmp_path) -> None:
    taken = pytest.raises(WardroundError, match=f"^{tmp_path}: a daemon is at work here already$")
    with sole(tmp_path), taken, sole(tmp_path):
        pass
    entered, leave = threading.Event(), threading.Event()

    def first() -> None:
        with sole(tmp_path):
            entered.set()
            leave.wait(60)

    thread = threading.Thread(target=first)
    thread.start()
    assert entered.wait(60)
    threading.Timer(0.5, leave.set).start()
    with sole(tmp_path, patience_s=60):
        thread.join(60)
    with pytest.raises(BlockingIOError), sole(tmp_path):  # what fails inside is not taken for a second daemon
        raise BlockingIOError


def test_lines_of_a_child_have_the_level_that_they_name(tmp_path, caplog) -> None:
    said = "print('ERROR :   no such key'); print('WARNING : retrying'); print('INFO : up'); print('ERRORS: none')"
    child = Child(name="talker", command=(sys.executable, "-c", said), environment={}, folder=tmp_path)
    stopped, ends = threading.Event(), time.monotonic() + 60

    def each() -> None:
        if time.monotonic() > ends or "ERRORS: none" in caplog.text:
            stopped.set()

    with caplog.at_level("INFO"):
        supervise([child], stopped, each)
    levels = {record.getMessage().split()[0]: record.levelname for record in caplog.records if ":" in record.message}
    assert [levels[word] for word in ("ERROR", "WARNING", "INFO", "ERRORS:")] == ["ERROR", "WARNING", "INFO", "INFO"]
