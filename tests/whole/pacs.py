"""A real Orthanc in a network namespace of its own, which has a loopback device and nothing else.

Orthanc listens on all interfaces and has no setting for it. Programs that talk to it run in the same namespace.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PACKAGES = ("orthanc", "dicom3tools")
HTTP_PORT, DICOM_PORT = 18042, 14242
LIMIT_S = 120


def missing() -> str:
    """Install what is needed, and return why it cannot be used, or ""."""
    if os.geteuid() != 0:
        return "needs root: a network namespace and Debian packages"
    if not (shutil.which("Orthanc") and shutil.which("dciodvfy")):
        if shutil.which("apt-get") is None:
            return "needs Debian's packages orthanc and dicom3tools"
        command = ["apt-get", "install", "-y", "--no-install-recommends", *PACKAGES]
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
        if done.returncode:
            return f"apt-get cannot install {' and '.join(PACKAGES)}: {done.stderr.strip()[-200:]}"
    return ""


@dataclass(frozen=True, kw_only=True)
class Pacs:
    """A running Orthanc. `inside` are the words that run a program in its namespace."""

    inside: tuple[str, ...]

    def call(self, path: str, body: Path | None = None) -> bytes:
        """Send a request to Orthanc's own interface, with a file as its body if one is given."""
        words = [
            *self.inside,
            "curl",
            "-sS",
            "--fail-with-body",
            "--max-time",
            "60",
            f"http://127.0.0.1:{HTTP_PORT}{path}",
        ]
        if body is not None:
            words += ["--data-binary", f"@{body}", "-H", "Content-Type: application/dicom"]
        done = subprocess.run(words, capture_output=True, timeout=LIMIT_S)
        assert done.returncode == 0, (done.stdout + done.stderr).decode(errors="replace")
        return done.stdout

    def stored(self, path: Path) -> bytes:
        """Store a file, and return what comes back for it."""
        answer = json.loads(self.call("/instances", path))
        assert answer["Status"] == "Success", answer
        return self.call(f"/instances/{answer['ID']}/file")


@contextmanager
def orthanc(folder: Path) -> Iterator[Pacs]:
    """Run Orthanc with an empty store below `folder` for as long as the block lasts."""
    name = f"wardround-{os.getpid()}"
    inside = ("ip", "netns", "exec", name)
    settings = {
        "DicomAet": "TESTPACS", "DicomPort": DICOM_PORT, "HttpPort": HTTP_PORT, "AuthenticationEnabled": False,
        "RemoteAccessAllowed": True, "StorageDirectory": str(folder), "IndexDirectory": str(folder), "Plugins": [],
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "orthanc.json").write_text(json.dumps(settings))
    subprocess.run(["ip", "netns", "add", name], check=True, timeout=LIMIT_S)
    try:
        subprocess.run([*inside, "ip", "link", "set", "lo", "up"], check=True, timeout=LIMIT_S)
        with open(folder / "orthanc.log", "wb") as log:
            process = subprocess.Popen([*inside, "Orthanc", str(folder / "orthanc.json")], stdout=log, stderr=log)
        try:
            pacs, ends = Pacs(inside=inside), time.monotonic() + LIMIT_S
            while b"Orthanc has started" not in (folder / "orthanc.log").read_bytes():
                assert process.poll() is None and time.monotonic() < ends, (folder / "orthanc.log").read_text()
                time.sleep(0.2)
            yield pacs
        finally:
            process.terminate()
            process.wait(LIMIT_S)
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True, timeout=LIMIT_S)
