"""The comparison with peers: what it counts, and that the peers' programs do the work. Nothing is downloaded here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
from paths import ROOT

BENCH = ROOT / "bench"

sys.path.insert(0, str(BENCH))
try:
    import peers
finally:
    sys.path.remove(str(BENCH))

# The middle process ends at once and leaves the last one behind, which still works for a while.
ORPHAN = """
import subprocess, sys
subprocess.Popen([sys.executable, "-c", "import time; began = time.process_time()\\n"
    "block = bytearray(80_000_000)\\n"
    "while time.process_time() - began < 0.6: pass"])
"""
MEASURE = """
import json, sys
from dataclasses import asdict
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import peers
try:
    print(json.dumps(asdict(peers.measured([sys.executable, "-c", sys.argv[2]], Path(sys.argv[3]), 20.0))))
except peers.NotDone as error:
    print(json.dumps(str(error)))
"""


def measured(code: str, folder: Path) -> dict | str:
    """In a process of its own, because `measured` adopts and ends all processes below it."""
    command = [sys.executable, "-c", MEASURE, str(BENCH), code, str(folder)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_processes_that_outlive_their_command_are_counted(tmp_path: Path) -> None:
    used = measured(ORPHAN, tmp_path)
    assert 0.6 <= used["cpu_s"] < 3.0
    assert 80 < used["largest_mb"] <= used["peak_mb"]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_command_that_fails_is_one_line(tmp_path: Path) -> None:
    assert measured("print('first'); raise SystemExit('no such thing')", tmp_path) == "ended with 1: no such thing"


@pytest.fixture(scope="module")
def works(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, sites = tmp_path_factory.mktemp("peers"), ["site-1", "site-2"]
    peers.write_data(folder / "data", sites, 10, 16)
    for work in peers.WORKS:
        (folder / work).mkdir()
        arguments = Namespace(patients=10, rounds=2, image_size=16, steps=3)
        peers.write_work(folder / work, folder / "data", sites, work, arguments)
    return folder


def program(name: str, settings: Path) -> dict:
    command = [sys.executable, str(BENCH / "peer_programs" / f"{name}.py"), str(settings)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "FLWR_TELEMETRY_ENABLED": "0"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_only_the_private_work_has_noise_and_only_the_empty_one_takes_one_step(works: Path) -> None:
    settings = {work: json.loads((works / work / "settings.json").read_text()) for work in peers.WORKS}
    assert {work: one["noise"] > 0 for work, one in settings.items()} == {
        "plain": False, "private": True, "empty": False
    }  # fmt: skip
    assert {work: one["steps"] for work, one in settings.items()} == {"plain": 3, "private": 3, "empty": 1}


@pytest.mark.parametrize("work", [pytest.param("plain", marks=pytest.mark.slow), "private"])
def test_the_plain_loop_does_the_work(works: Path, work: str) -> None:
    scores = program("loop", works / work / "settings.json")["scores"]
    assert len(scores) == 2 and all(0 <= score <= 1 for score in scores)


@pytest.mark.slow
def test_stock_flower_does_the_work(works: Path) -> None:
    assert len(program("flower", works / "private" / "settings.json")["scores"]) == 2


def test_a_peer_that_cannot_be_installed_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(peers.PEERS, "flare", ("./there-is-no-such-package",))
    with pytest.raises(peers.NotDone, match=r"NVFLARE could not be installed: .+") as raised:
        peers.install("flare", tmp_path)
    assert "\n" not in str(raised.value)
