"""A federation of real processes on this machine: one server and three hospitals, with their commands."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from builders.processes import free_ports

from wardround.identity import read_request
from wardround_client.sources.cohort import CohortRow, pseudonym, write_cohort
from wardround_server.sites.registry import Registry

STUDY = """
[study]
name = "tiny"
rounds = {rounds}
[data]
image_size = 32
labels = ["benign", "malignant"]
[model]
name = "seed-cnn"
init = "random"
trainable = "all"
[training]
learning_rate = 0.1
[privacy]
epsilon = inf
delta = 1e-5
max_grad_norm = 1.0
sampling_rate = 1.0
nominal_patients = 8
[aggregation]
nominal_sites = 3
min_sites = {min_sites}
round_deadline_s = 90
"""


NAMES = ("east", "north", "west")


KEY = b"k" * 32


def command(program, *words, timeout=300):
    """Run one of this project's commands to completion and return its JSON."""
    module = f"wardround_{program}.cli.main"
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, words), "--json"], capture_output=True, text=True, timeout=timeout
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def approve(study, folder) -> None:
    command("client", "studies", "approve", study, "--yes", "--by", "Ada Lovelace", "--site", folder)


def write_patients(folder: Path, seed: int, patients: int = 8, size: int = 32) -> None:
    """Write a cohort of grey images, two per patient, in which a bright square marks the second label."""
    rows, images = [], []
    generator = np.random.default_rng(seed)
    for number in range(2 * patients):
        label = number // 2 % 2
        image = generator.integers(0, 120, (1, size, size), dtype=np.uint8)
        image[:, 8:20, 8:20] += np.uint8(90 * label)
        images.append(image)
        rows.append(CohortRow(pseudonym=pseudonym(KEY, f"{seed}-{number // 2}"), label=label))
    names = ("benign", "malignant")
    write_cohort(folder / "cohort", rows, iter(images), row_shape=(1, size, size), label_names=names, site_key=KEY)


def make_hospital(server: Path, folder: Path, address: str, runtime_port: int) -> None:
    """Create a hospital's folder with `init`, enrol its key at the server, and allow studies without privacy."""
    words = ["init", "--server", address, "--name", folder.name, "--ca", server / "ca" / "ca.crt", "--site", folder]
    subprocess.run(
        [sys.executable, "-m", "wardround_client.cli.main", *map(str, words)], check=True, capture_output=True
    )
    path = folder / "site.toml"
    text = path.read_text()
    assert "allow_no_privacy = false" in text and "runtime_port = 9094" in text
    text = text.replace("allow_no_privacy = false", "allow_no_privacy = true")
    path.write_text(text.replace("runtime_port = 9094", f"runtime_port = {runtime_port}"))
    request = read_request(folder / f"{folder.name}.enrol.json")
    Registry(server).add(request.name, request.public_key)


def command_code(program, *words) -> int:
    words = [sys.executable, "-m", f"wardround_{program}.cli.main", *map(str, words)]
    return subprocess.run(words, capture_output=True, timeout=60).returncode


class Federation:
    """The folders and daemons of one server and its hospitals."""

    def __init__(self, root: Path) -> None:
        self.server = root / "server"
        self.folders = {name: root / name for name in NAMES}
        self.processes: dict[str, subprocess.Popen] = {}
        fleet, control, *ports = free_ports(2 + len(NAMES))
        command("server", "init", self.server, "--host", "127.0.0.1", "--port", fleet)
        text = (self.server / "server.toml").read_text()
        (self.server / "server.toml").write_text(text.replace("control_port = 9093", f"control_port = {control}"))
        for number, folder in enumerate(self.folders.values()):
            make_hospital(self.server, folder, f"127.0.0.1:{fleet}", ports[number])
            write_patients(folder, seed=number)

    def start(self, name: str) -> None:
        program = ["server", "--server", self.server] if name == "server" else ["client", "--site", self.folders[name]]
        self.processes[name] = subprocess.Popen(
            [sys.executable, "-m", f"wardround_{program[0]}.cli.main", "start", *map(str, program[1:])],
            start_new_session=True,
            stdout=subprocess.DEVNULL,
        )

    def run(self) -> dict:
        return command("server", "runs", "--server", self.server)[0]

    def wait_for(self, what, limit_s: float):
        ends = time.monotonic() + limit_s
        while time.monotonic() < ends:
            if (run := self.run()) and what(run):
                return run
            time.sleep(1)
        pytest.fail(f"not within {limit_s} s: {self.run()}\n{self.logs()}")

    def logs(self) -> str:
        paths = [self.server / "logs" / "server.log", *(one / "logs" / "site.log" for one in self.folders.values())]
        return "\n".join(f"== {path}\n{path.read_text()[-3000:]}" for path in paths if path.is_file())

    def stop(self, name: str) -> int:
        process = self.processes.pop(name)
        process.terminate()
        return process.wait(timeout=40)


def deadline_s() -> int:
    """Return a round deadline in seconds that this machine can meet under its current load.

    The deadline depends on the time for importing torch, which a task does first.
    """
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", "import torch, flwr.clientapp, wardround_client.rounds.training"], check=True)
    return round(min(max(40.0, 10.0 * (time.monotonic() - began)), 120.0))
