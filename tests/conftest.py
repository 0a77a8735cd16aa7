"""What every test gets: one thread for arithmetic, so that tests are as fast beside others' work as alone."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

# Read by torch and numpy when they are imported, here and in every process that a test starts.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")

# A shell starts what it runs in the background with SIGINT ignored, and every program of a test would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import hypothesis  # noqa: E402
import pytest  # noqa: E402

# No deadline an example: a busy machine is no fault. In CI the same examples each time; elsewhere new ones.
hypothesis.settings.register_profile("house", deadline=None, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("house")


# Files of whole runs begin first, so that no core waits for the last of them.
LONGEST = (
    "whole/test_special_runs.py",
    "whole/test_end_to_end.py",
    "simulation/attack/test_attack.py",
    "shared/handover/test_verify.py",
    "client/rounds/test_personalisation.py",
    "client/flower/test_task_process.py",
    "client/pacs/test_pull.py",
    "client/clipping/test_bookkeeping.py",
    "simulation/engine/test_stop.py",
    "whole/test_new_task.py",
    "shared/test_printable.py",
    "simulation/cli/test_bad_input.py",
    "client/clipping/test_hostile_weights.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    place = {name: number for number, name in enumerate(LONGEST)}
    tests = Path(__file__).parent
    items.sort(key=lambda item: place.get(item.path.relative_to(tests).as_posix(), len(LONGEST)))


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """One thread in torch too, whatever a test before set; torch itself is imported only by tests that need it."""
    if (torch := sys.modules.get("torch")) is not None and torch.get_num_threads() != 1:
        torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def safe_path_ends_with_the_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that runs a program in this process leaves no PYTHONSAFEPATH for the processes of the next test."""
    monkeypatch.setenv("PYTHONSAFEPATH", "")
    monkeypatch.delenv("PYTHONSAFEPATH")
