"""Both images, built from deploy/docker/Dockerfile without a network, and a run of two rounds between their containers.

The base image is a Debian made here, so that no registry of images is needed. podman-compose starts the containers from
deploy/docker/compose.yaml with one change: they use the network namespace of the test, which has a loopback device and
nothing else, instead of a bridge. So the ports of compose.yaml are not published here.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from builders.debian import PYTHON, beside, debian, missing, tiny_study, told, until, wheels
from paths import ROOT

pytestmark = pytest.mark.slow

PACKAGES = {
    "debootstrap": "debootstrap", "buildah": "buildah", "podman": "podman", "runc": "runc", "catatonit": "catatonit",
    "unshare": "util-linux", "ip": "iproute2",
}  # fmt: skip
DOCKER = ROOT / "deploy" / "docker"
PARTS = ("server", "site")
PERSON = "Ada Lovelace"
BUILD_LIMIT_S, COMMAND_LIMIT_S, SERVING_LIMIT_S, ROUND_LIMIT_S, STOP_LIMIT_S = 1800.0, 180.0, 300.0, 600.0, 60.0
# podman's own limits of files and processes are more than this machine may allow anybody.
OVERRIDE = """
services:
  server: {network_mode: host, ulimits: {nofile: 20000, nproc: 10000}}
  site: {network_mode: host, ulimits: {nofile: 20000, nproc: 10000}}
"""


@dataclass(frozen=True, kw_only=True)
class Engine:
    """podman and buildah with a store of their own below `folder`, and a network namespace called `name`."""

    folder: Path
    name: str
    tools: Path

    @property
    def store(self) -> tuple[str, ...]:
        return ("--root", f"{self.folder}/store", "--runroot", f"{self.folder}/run", "--storage-driver", "overlay")

    @property
    def podman(self) -> str:
        return f"{self.folder}/podman"

    def prepare(self) -> None:
        """Write a program `podman` for this store and network, and the change to compose.yaml."""
        options = ("--cgroup-manager", "cgroupfs", "--runtime", str(shutil.which("runc")), "--events-backend", "file")
        words = (
            "nsenter",
            f"--net=/run/netns/{self.name}",
            "podman",
            *self.store,
            "--tmpdir",
            f"{self.folder}/run/libpod",
            *options,
        )
        Path(self.podman).write_text(f'#!/bin/sh\nexec {" ".join(words)} "$@"\n', encoding="utf-8")
        Path(self.podman).chmod(0o755)
        (self.folder / "override.yaml").write_text(OVERRIDE, encoding="utf-8")
        (self.folder / "pip.conf").write_text("[global]\nno-index = true\nfind-links = /wheels\n", encoding="utf-8")
        (self.folder / "images").mkdir()

    def compose_command(self, *words: object) -> list[str]:
        start = "import sys; sys.path.insert(0, sys.argv.pop(1)); from podman_compose import main; main()"
        files = ("-f", DOCKER / "compose.yaml", "-f", self.folder / "override.yaml")
        command = (
            sys.executable,
            "-c",
            start,
            self.tools,
            "-p",
            self.name,
            "--podman-path",
            self.podman,
            *files,
            *words,
        )
        return list(map(str, command))

    def compose(self, *words: object, given: str | None = None, limit_s: float = COMMAND_LIMIT_S) -> str:
        """Run `podman-compose` with the project's file, and return what it printed to standard output."""
        environment = {**os.environ, "PYTHON_IMAGE": "python@sha256:0", "IMAGES": f"{self.folder}/images"}
        done = subprocess.run(
            self.compose_command(*words), env=environment, input=given, capture_output=True, text=True, timeout=limit_s
        )
        assert done.returncode == 0, f"{words}\n{done.stdout}{done.stderr}"[-4000:]
        return done.stdout

    def asked(self, part: str, *words: object) -> Any:
        """What a command in the running container prints with --json."""
        return json.loads(self.compose("exec", "-T", part, f"wardround-{part}", *words, "--json"))

    def inside(self, part: str, script: str, given: str | None = None) -> str:
        return self.compose("exec", "-T", part, "sh", "-c", script, given=given)

    def container(self, part: str) -> str:
        return f"{self.name}_{part}_1"

    def state(self, part: str) -> dict[str, Any]:
        return json.loads(told(self.podman, "inspect", self.container(part)))[0]["State"]

    def serves(self, part: str) -> bool:
        """Whether the image's own health check passes."""
        command = [self.podman, "healthcheck", "run", self.container(part)]
        return subprocess.run(command, capture_output=True, timeout=COMMAND_LIMIT_S).returncode == 0

    def run(self) -> dict[str, Any]:
        return self.asked("server", "runs")[0]

    def logs(self) -> str:
        return "\n".join(told(self.podman, "logs", "--tail", "20", self.container(part)) for part in PARTS)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """The engine with both images in its store. Everything is removed at the end."""
    if reason := missing(PACKAGES):
        pytest.skip(reason)
    tools = beside(ROOT / "tests" / "deploy" / "tools.txt")
    one = Engine(folder=tmp_path_factory.mktemp("images"), name=f"wardround-{os.getpid()}", tools=tools)
    told("ip", "netns", "add", one.name)
    try:
        one.prepare()
        told("ip", "-n", one.name, "link", "set", "lo", "up")
        told(one.podman, "import", debian(PYTHON), "localhost/python", limit_s=BUILD_LIMIT_S)
        digest = told(one.podman, "image", "inspect", "--format", "{{.Digest}}", "localhost/python").strip()
        began = time.monotonic()
        for part in PARTS:
            build(one, part, digest)
        print(f"both images built in {time.monotonic() - began:.0f} s")
        yield one
    finally:
        ends = (one.compose_command("down", "--volumes"), [one.podman, "system", "reset", "--force"])
        for command in ends:
            subprocess.run(command, capture_output=True, timeout=BUILD_LIMIT_S)
        told("ip", "netns", "delete", one.name)
        told("rm", "-rf", "--one-file-system", one.folder, limit_s=300)


def build(engine: Engine, part: str, digest: str) -> None:
    """Build one target of the Dockerfile in a process without a network, from the files that pip downloaded before."""
    words = (
        *("--isolation", "chroot", "--pull-never", "--layers", "--format", "docker", "--target", part),
        *("--volume", f"{wheels()}:/wheels:ro", "--volume", f"{engine.folder}/pip.conf:/etc/pip.conf:ro"),
        *("--build-arg", f"PYTHON_IMAGE=localhost/python@{digest}"),
        *("--tag", f"localhost/wardround-{part}", "--file", DOCKER / "Dockerfile", ROOT),
    )
    told("unshare", "--net", "buildah", *engine.store, "bud", *words, limit_s=BUILD_LIMIT_S)


def enrol(engine: Engine) -> None:
    """The steps of deploy/README.md: both folders, and the site's key at the server by its fingerprint."""
    once = ("run", "--rm", "-T")
    engine.compose(*once, "server", "init", "/data", "--host", "127.0.0.1")
    ca, request = engine.folder / "ca.crt", engine.folder / "north.enrol.json"
    ca.write_text(engine.compose(*once, "--entrypoint", "cat", "server", "/data/ca/ca.crt"), encoding="utf-8")
    words = ("init", "--server", "127.0.0.1:9092", "--name", "north", "--ca", "/ca.crt", "--site", "/data", "--json")
    made = json.loads(engine.compose(*once, "-v", f"{ca}:/ca.crt:ro", "site", *words))
    request.write_text(engine.compose(*once, "--entrypoint", "cat", "site", made["request"]), encoding="utf-8")
    words = ("sites", "add", "/request.json", "--fingerprint", made["key_sha256"], "--by", PERSON, "--server", "/data")
    engine.compose(*once, "-v", f"{request}:/request.json:ro", "server", *words)


def assert_unprivileged(engine: Engine, part: str) -> None:
    """No capabilities, no way to get any, a filter of system calls, and nothing to write to but /data and /tmp."""
    lines = engine.inside(part, "cat /proc/[0-9]*/status").splitlines()
    wanted = {"CapEff": "0" * 16, "CapBnd": "0" * 16, "NoNewPrivs": "1", "Seccomp": "2"}
    for name, value in wanted.items():
        assert {line.split(":")[1].strip() for line in lines if line.startswith(f"{name}:")} == {value}
    assert {field for line in lines if line.startswith("Uid:") for field in line.split()[1:]} == {"10001"}
    engine.inside(part, "for one in / /etc /usr /opt/wardround; do ! touch $one/x 2>/dev/null || exit 1; done")
    engine.inside(part, "touch /tmp/x /data/.x && rm /tmp/x /data/.x && test $(ulimit -c) = 0")


def test_a_run_in_containers_without_privileges_survives_a_kill_and_ends_cleanly(engine: Engine) -> None:
    program = Path(sys.executable).parent / "wardround-sim"
    told(program, "phantom", engine.folder / "phantoms", "--sites", 1, "--patients", 8, limit_s=300)
    (engine.folder / "images").rmdir()
    (engine.folder / "phantoms" / "hospital-1").rename(engine.folder / "images")
    told("chmod", "-R", "a+rX", engine.folder / "images")
    enrol(engine)
    engine.compose("up", "--detach", "--no-build")
    until(lambda: engine.serves("server"), SERVING_LIMIT_S, engine.logs)
    for part in PARTS:
        assert_unprivileged(engine, part)
    engine.inside("server", "cat > /tmp/study.toml", given=tiny_study(rounds=2, spare_rounds=2))
    sha256 = engine.asked("server", "submit", "/tmp/study.toml", "--server", "/data")["study_sha256"]
    until(lambda: bool(engine.asked("site", "studies", "list")), SERVING_LIMIT_S, engine.logs)
    engine.asked("site", "ingest", "/images", "--study", sha256)
    engine.asked("site", "studies", "approve", sha256, "--yes", "--by", PERSON)
    took_s = until(lambda: engine.run()["round"] >= 1, ROUND_LIMIT_S, engine.logs)
    print(f"the first round was complete {took_s:.0f} s after the approval")
    killed = engine.state("site")["Pid"]
    os.kill(killed, signal.SIGKILL)  # the container's first process, and with it all others
    until(lambda: engine.state("site")["Pid"] not in (0, killed), STOP_LIMIT_S, engine.logs)
    took_s = until(lambda: engine.run()["state"] == "finished", ROUND_LIMIT_S, engine.logs)
    print(f"the run finished {took_s:.0f} s after the site's container was killed and started again")
    until(lambda: engine.serves("site"), SERVING_LIMIT_S, engine.logs)
    assert engine.asked("site", "ledger", "verify")
    for part in reversed(PARTS):
        engine.asked(part, "audit", "verify", "/data/audit.jsonl")
        began = time.monotonic()
        engine.compose("stop", part)
        took_s = time.monotonic() - began
        print(f"{part} stopped within {took_s:.1f} s")
        assert engine.state(part)["ExitCode"] == 0 and took_s < STOP_LIMIT_S


def test_a_folder_that_was_not_created_is_one_line_and_code_2(engine: Engine) -> None:
    """The daemon of an image that was not set up ends with code 2."""
    done = subprocess.run([engine.podman, "run", "--rm", "--network", "none", "--ulimit", "nofile=20000:20000",
                           "--ulimit", "nproc=10000:10000", "localhost/wardround-site"],
                          capture_output=True, text=True, timeout=COMMAND_LIMIT_S)  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("wardround-site: /data: is not a site's folder")
