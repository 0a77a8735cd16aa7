"""Ctrl-C, SIGTERM and errors while Ray and Flower start: one line, whatever is being started at that moment."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from paths import TESTS

from wardround_simulation.engine.stop import Interrupted, Stop

# `MOMENT` is a function of a library; a signal arrives just before it works, and just afterwards it would be too late.
SCRIPT = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it
sys.path[:0] = [{tests!r}, *{path!r}]
from pathlib import Path
import ray.cloudpickle
from flwr.server.superlink.fleet.vce.backend import raybackend
from ray._private import node, worker
from builders import tiny_sites
from builders.tiny_sites import answer_tiny, open_tiny, site_folders
from wardround.errors import WardroundError
from wardround_simulation.engine import ray_cluster
from wardround_simulation.engine.flower import with_flower

ray.cloudpickle.register_pickle_by_value(tiny_sites)
owner, name, act = {moment}, {name!r}, {act!r}
before = getattr(owner, name)

def at_this_moment(*arguments, **named):
    if act == "error":
        raise RuntimeError("the moment\\nand its details")
    os.kill(os.getpid(), int(act))
    for _ in range(1000):  # the handler runs here, in the middle of the library's work
        pass
    return before(*arguments, **named)

setattr(owner, name, at_this_moment)
try:
    folders = site_folders(Path(sys.argv[1]))
    with_flower(folders, lambda exchange: print("trained"), open_site=open_tiny, answer=answer_tiny)
except WardroundError as error:
    print(f"{{type(error).__name__}}: {{error}}")
    sys.exit(error.exit_code)
"""
MOMENTS = {
    "Ray's processes": ("node.Node", "start_head_processes"),
    "Ray's connection": ("worker", "connect"),
    "Flower's engine": ("raybackend.RayBackend", "init_ray"),
    "Flower's workers": ("raybackend.RayBackend", "build"),
}


def started(folder: Path, moment: tuple[str, str], act: str) -> subprocess.CompletedProcess[str]:
    script = SCRIPT.format(tests=str(TESTS), path=sys.path, moment=moment[0], name=moment[1], act=act)
    return subprocess.run([sys.executable, "-c", script, str(folder)], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    "moment, number",
    [
        ("Ray's processes", signal.SIGINT),
        ("Ray's connection", signal.SIGTERM),
        ("Flower's engine", signal.SIGTERM),
        ("Flower's workers", signal.SIGINT),
    ],
)
def test_a_stop_while_the_engine_starts_is_one_line(tmp_path: Path, moment: str, number: int) -> None:
    done = started(tmp_path, MOMENTS[moment], str(int(number)))
    assert done.stdout.splitlines()[-1].startswith("Interrupted: stopped; the same command continues"), done.stderr
    assert done.returncode == 130 and "trained" not in done.stdout
    assert "Traceback" not in done.stderr and "bug in Ray" not in done.stderr


@pytest.mark.parametrize("moment", ["Ray's processes", "Flower's workers"])
def test_an_error_while_the_engine_starts_is_one_line(tmp_path: Path, moment: str) -> None:
    done = started(tmp_path, MOMENTS[moment], "error")
    assert done.stdout.splitlines()[-1].startswith("WardroundError: the simulation engine"), done.stderr
    assert done.stdout.splitlines()[-1].endswith("the moment") and done.returncode == 1
    assert "bug in Ray" not in done.stderr


def test_a_signal_takes_effect_at_the_next_safe_moment_and_once() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    stop = Stop()
    with pytest.raises(Interrupted, match="the same command continues"), stop.on_signals():
        signal.raise_signal(signal.SIGINT)
        assert stop.requested and stop.ended.is_set()  # recorded, and nothing raised
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            stop.main_thread_waits()
        signal.raise_signal(signal.SIGTERM)
        stop.check()
    quiet = Stop()
    with quiet.on_signals():
        quiet.check()
    assert signal.signal(signal.SIGINT, before) is signal.default_int_handler


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    before, stop = signal.signal(signal.SIGINT, signal.SIG_IGN), Stop()
    try:
        with stop.on_signals():
            signal.raise_signal(signal.SIGINT)
        assert not stop.requested
    finally:
        signal.signal(signal.SIGINT, before)
