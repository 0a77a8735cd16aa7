"""Both systemd units on a real systemd, installed as deploy/README.md describes: booted, killed and stopped.

The machine is a Debian in a folder with a network of its own, which has a loopback device and nothing else.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from builders.debian import PYTHON, debian, missing, tiny_study, told, until, wheels
from paths import ROOT

pytestmark = pytest.mark.slow

PACKAGES = {"debootstrap": "debootstrap", "systemd-nspawn": "systemd-container"}
PROGRAM = Path("/opt/wardround")
COPIED = ("run", "pyproject.toml", "README.md", "LICENSE", "lock", "shared", "client", "server", "simulation")
PARTS = ("server", "site")
FOLDERS = {part: f"/var/lib/wardround-{part}" for part in PARTS}
IMAGES, STUDY_FILE, PATIENTS = "/srv/images", "/srv/tiny.toml", 8
PERSON = "Ada Lovelace"
INSTALL_LIMIT_S, BOOT_LIMIT_S, SERVING_LIMIT_S, STOP_LIMIT_S = 1800.0, 120.0, 300.0, 60.0
LOOK_S = 1.0


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A booted system; `leader` is its first process."""

    leader: int

    def is_up(self) -> bool:
        """Whether systemd has started all that it starts at boot."""
        done = subprocess.run([*self.inside, "systemctl", "is-system-running"], capture_output=True, timeout=60)
        return done.stdout.strip() in (b"running", b"degraded")

    def told(self, *words: object, limit_s: float = 120.0, code: int = 0) -> str:
        """Run a program in the system, as root, and return what it printed."""
        return told(*self.inside, *words, limit_s=limit_s, code=code)

    @property
    def inside(self) -> tuple[str, ...]:
        """The words that run a program in the system."""
        return ("nsenter", f"--target={self.leader}", "--all", "--root", "--wd")

    def property_of(self, part: str, name: str) -> str:
        return self.told("systemctl", "show", "--value", f"--property={name}", f"wardround-{part}").strip()

    def pid(self, part: str) -> int:
        """The daemon's process id, inside the system."""
        return int(self.property_of(part, "MainPID"))

    def processes(self, part: str) -> set[int]:
        """All processes of a unit, by their ids inside the system."""
        group = self.property_of(part, "ControlGroup")
        if not group:
            return set()
        files = [f"{mount}{group}/cgroup.procs" for mount in ("/sys/fs/cgroup", "/sys/fs/cgroup/systemd")]
        return {int(line) for line in self.told("sh", "-c", f"cat {' '.join(files)} 2>/dev/null || true").split()}

    def status(self, pid: int) -> dict[str, str]:
        """The fields of /proc/PID/status."""
        printed = self.told("cat", f"/proc/{pid}/status")
        return {name: value.strip() for name, _, value in (line.partition(":") for line in printed.splitlines())}

    def serves(self, part: str) -> bool:
        """Whether the daemon's own `health` finds it SERVING."""
        command = [*self.inside, *command_of(part, "health")]
        return subprocess.run(command, capture_output=True, timeout=120).returncode == 0

    def asked(self, part: str, *words: object) -> Any:
        """What a command of the program prints with --json, run by the unit's user."""
        return json.loads(self.told(*command_of(part, *words, "--json")))

    def run(self) -> dict[str, Any]:
        return self.asked("server", "runs")[0]

    def logs(self) -> str:
        """The journal's and the daemons' last lines."""
        units = [f"--unit=wardround-{part}" for part in PARTS]
        journal = self.told("journalctl", "--no-pager", "--lines=40", *units)
        return journal + self.told(
            "sh", "-c", f"tail -n 15 {' '.join(f'{one}/logs/*.log' for one in FOLDERS.values())}"
        )


def command_of(part: str, *words: object) -> tuple[str, ...]:
    """A command on the folder of a unit, by its user."""
    program = str(PROGRAM / ".venv" / "bin" / f"wardround-{part}")
    folder = () if words[0] in ("audit", "init") else (f"--{part}", FOLDERS[part])
    return ("runuser", "-u", f"wardround-{part}", "--", program, *map(str, words), *folder)


def install(root: Path) -> None:
    """The steps of deploy/README.md, with files that were downloaded before instead of an index."""
    told("chroot", root, "apt-get", "install", "-y", "--no-install-recommends", "systemd-sysv", limit_s=600)
    target = root / PROGRAM.relative_to("/")
    target.mkdir(parents=True)
    for name in COPIED:
        told("cp", "-a", ROOT / name, target / name)
    (root / "wheels").mkdir()
    told("mount", "--bind", wheels(), root / "wheels")
    try:
        environment = ("PIP_NO_INDEX=1", "PIP_FIND_LINKS=/wheels", "PIP_NO_CACHE_DIR=1", "PIP_CONFIG_FILE=/dev/null")
        told("chroot", root, "env", *environment, PROGRAM / "run", "site", "--help", limit_s=INSTALL_LIMIT_S)
    finally:
        told("umount", root / "wheels")
    for part in PARTS:
        folder = f"/var/lib/wardround-{part}"
        words = ("--system", "--home-dir", folder, "--shell", "/usr/sbin/nologin", f"wardround-{part}")
        told("chroot", root, "useradd", *words)
        owner = ("-o", f"wardround-{part}", "-g", f"wardround-{part}", "-m", "0700")
        told("chroot", root, "install", "-d", *owner, folder)
        told("cp", ROOT / "deploy" / "systemd" / f"wardround-{part}.service", root / "etc/systemd/system/")


def enrol(root: Path) -> None:
    """Make the folders of both, enrol the site at the server by its key's fingerprint, and prepare its images."""
    server, site, inside = FOLDERS["server"], FOLDERS["site"], ("chroot", root)
    told(*inside, *command_of("server", "init", server, "--host", "127.0.0.1"))
    told(*inside, "install", "-m", "0644", f"{server}/ca/ca.crt", "/srv/ca.crt")
    words = ("init", "--server", "127.0.0.1:9092", "--name", "north", "--ca", "/srv/ca.crt", "--site", site, "--json")
    made = json.loads(told(*inside, *command_of("site", *words)))
    told(*inside, "install", "-m", "0644", f"{site}/north.enrol.json", "/srv/north.enrol.json")
    words = ("sites", "add", "/srv/north.enrol.json", "--fingerprint", made["key_sha256"], "--by", PERSON)
    told(*inside, *command_of("server", *words))
    (root / STUDY_FILE[1:]).write_text(tiny_study(rounds=3, spare_rounds=4), encoding="utf-8")
    program = PROGRAM / ".venv" / "bin" / "wardround-sim"
    told(*inside, program, "phantom", IMAGES, "--sites", 1, "--patients", PATIENTS, limit_s=300)
    told("chmod", "-R", "a+rX", root / IMAGES[1:])
    told(*inside, *command_of("site", "ingest", f"{IMAGES}/hospital-1", "--study", STUDY_FILE), limit_s=300)


def first_process(nspawn: int) -> list[int]:
    """The first process of the system that nspawn has started, as soon as it is systemd."""
    children = map(int, Path(f"/proc/{nspawn}/task/{nspawn}/children").read_text().split())
    return [pid for pid in children if Path(f"/proc/{pid}/comm").read_text().strip() == "systemd"]


@contextmanager
def booted(root: Path, log: Path) -> Iterator[Machine]:
    """Boot the system, and turn it off at the end of the block."""
    script = (
        'mount -t tmpfs tmpfs /run && exec systemd-nspawn -q -D "$1" --boot --register=no --keep-unit '
        "--private-network --console=pipe </dev/null"
    )
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", str(root)]
    with open(log, "wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True)
    leader = 0
    try:
        until(lambda: bool(first_process(process.pid)), BOOT_LIMIT_S, log.read_text)
        leader = first_process(process.pid)[0]
        yield Machine(leader=leader)
        os.kill(leader, signal.SIGRTMIN + 4)  # systemd's power-off
        assert process.wait(BOOT_LIMIT_S) == 0
    finally:
        if process.poll() is None:
            for pid in filter(None, (leader, process.pid)):  # all processes of the system end with its first
                os.kill(pid, signal.SIGKILL)
            process.wait(BOOT_LIMIT_S)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A Debian with both programs installed, the site enrolled, and the units enabled."""
    if reason := missing(PACKAGES):
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("units") / "root"
    try:
        folder.mkdir()
        told("tar", "--numeric-owner", "-C", folder, "-xpf", debian(PYTHON), limit_s=300)
        install(folder)
        enrol(folder)
        yield folder
    finally:
        told("rm", "-rf", "--one-file-system", folder, limit_s=300)


def wait_until_both_serve(machine: Machine) -> None:
    took = {part: until(lambda part=part: machine.serves(part), SERVING_LIMIT_S, machine.logs) for part in PARTS}
    print("serving after", {part: f"{seconds:.0f} s" for part, seconds in took.items()})


def test_both_units_serve_without_privileges_and_a_run_survives_that_they_are_killed(
    root: Path, tmp_path: Path
) -> None:
    log = tmp_path / "boot.log"
    with booted(root, log) as machine:
        until(lambda: machine.is_up(), BOOT_LIMIT_S, log.read_text)
        for part in PARTS:
            machine.told("systemctl", "enable", "--now", f"wardround-{part}")
        wait_until_both_serve(machine)
        for part in PARTS:
            assert len(pids := machine.processes(part)) >= 3
            for status in map(machine.status, pids):
                assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0
                assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2") and "0" not in status["Uid"].split()
            mounts = ("nsenter", f"--target={machine.pid(part)}", "--mount")
            places = f"/ /etc /usr {PROGRAM}"
            machine.told(*mounts, "sh", "-c", f"for one in {places}; do ! touch $one/x 2>/dev/null || exit 1; done")
            machine.told(*mounts, "touch", f"{FOLDERS[part]}/.probe")
        machine.asked("server", "submit", STUDY_FILE)
        until(lambda: bool(machine.asked("site", "studies", "list")), SERVING_LIMIT_S, machine.logs)
        machine.asked("site", "studies", "approve", machine.run()["study_sha256"], "--yes", "--by", PERSON)
        until(lambda: machine.run()["round"] >= 1, SERVING_LIMIT_S, machine.logs)
        for part in PARTS:
            before = machine.pid(part), machine.processes(part)
            machine.told("sh", "-c", f"kill -KILL {before[0]}")
            until(lambda part=part: machine.property_of(part, "NRestarts") == "1", STOP_LIMIT_S, machine.logs)
            until(lambda part=part, before=before: machine.pid(part) not in (0, before[0]), STOP_LIMIT_S, machine.logs)
            assert not before[1] & machine.processes(part), "something of the killed daemon is still there"
        took_s = until(lambda: machine.run()["state"] == "finished", 2 * SERVING_LIMIT_S, machine.logs)
        print(f"the run finished {took_s:.0f} s after both daemons were killed")
        wait_until_both_serve(machine)


def test_both_units_come_back_after_a_power_off_end_cleanly_and_do_not_insist_on_a_wrong_file(
    root: Path, tmp_path: Path
) -> None:
    with booted(root, tmp_path / "boot.log") as machine:
        until(lambda: machine.is_up(), BOOT_LIMIT_S, (tmp_path / "boot.log").read_text)
        wait_until_both_serve(machine)
        for part in PARTS:
            began = time.monotonic()
            machine.told("systemctl", "stop", f"wardround-{part}", limit_s=2 * STOP_LIMIT_S)
            print(f"{part} stopped within {time.monotonic() - began:.1f} s")
            found = {name: machine.property_of(part, name) for name in ("Result", "ExecMainStatus", "ActiveState")}
            assert found == {"Result": "success", "ExecMainStatus": "0", "ActiveState": "inactive"}
            assert machine.processes(part) == set()
            machine.asked(part, "audit", "verify", f"{FOLDERS[part]}/audit.jsonl")
        machine.told("sh", "-c", f"echo 'unknown = 1' >> {FOLDERS['site']}/site.toml")
        machine.told("systemctl", "start", "wardround-site")
        until(lambda: machine.property_of("site", "ActiveState") == "failed", STOP_LIMIT_S, machine.logs)
        time.sleep(float(machine.property_of("site", "RestartUSec").removesuffix("s")) + 2 * LOOK_S)
        assert machine.property_of("site", "ExecMainStatus") == "2"
        assert machine.property_of("site", "NRestarts") == "0"
        journal = machine.told("journalctl", "--no-pager", "--unit=wardround-site", "--lines=10")
        assert re.search(r"wardround-site: \S+site\.toml: .*unknown", journal) and "Traceback" not in journal, journal
