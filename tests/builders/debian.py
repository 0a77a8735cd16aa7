"""A Debian system in a folder, and the files that are installed into it: for tests of the units and of the images.

`runs/deploy-test/` keeps what was downloaded, so that a second call needs no network. It may be deleted at any time.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from paths import ROOT, STUDIES

KEPT = ROOT / "runs" / "deploy-test"
SUITE, DEBIANS_PYTHON = "bookworm", "3.11"
PYTHON = ("ca-certificates", "python-is-python3", "python3", "python3-pip", "python3-venv")
DOWNLOAD_LIMIT_S = 1800.0
LOOK_S = 1.0
LOCKS = ("torch-cpu", "python", "build", "test")


def missing(packages: Mapping[str, str]) -> str:
    """Install Debian packages (program -> its package), and return why they cannot be used, or ""."""
    if os.geteuid() != 0:
        return "needs root: mounts, namespaces and Debian packages"
    absent = [package for program, package in packages.items() if shutil.which(program) is None]
    if absent and shutil.which("apt-get") is None:
        return f"needs Debian's packages {', '.join(absent)}"
    if absent:
        command = ["apt-get", "install", "-y", "--no-install-recommends", *absent]
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
        if done.returncode:
            return f"apt-get cannot install {', '.join(absent)}: {done.stderr.strip()[-200:]}"
    return ""


def told(*words: object, limit_s: float = 60.0, code: int = 0) -> str:
    """Run a program to its end, and return what it printed. Fails if it ends with another code than `code`."""
    command = [str(word) for word in words]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", timeout=limit_s)
    assert done.returncode == code, f"{' '.join(command)}\nended with {done.returncode}\n{done.stdout}{done.stderr}"[
        -4000:
    ]
    return done.stdout


def until(what: Callable[[], bool], limit_s: float, why: Callable[[], str]) -> float:
    """Wait until `what` holds, and return the seconds that it took."""
    began = time.monotonic()
    while not what():
        assert time.monotonic() - began < limit_s, f"not within {limit_s:.0f} s\n{why()}"
        time.sleep(LOOK_S)
    return time.monotonic() - began


def tiny_study(*, rounds: int, spare_rounds: int) -> str:
    """The demonstration's study for one site with a few phantom patients."""
    text = (STUDIES / "demo.toml").read_text(encoding="utf-8")
    changes = {
        "name": '"tiny"', "rounds": rounds, "spare_rounds": spare_rounds, "nominal_patients": 6, "nominal_sites": 1,
        "min_sites": 1, "round_deadline_s": 120,
    }  # fmt: skip
    for key, value in changes.items():
        text, count = re.subn(rf"^{key} = .*$", f"{key} = {value}", text, count=1, flags=re.MULTILINE)
        assert count == 1, f"demo.toml has no {key}"
    return text


def debian(packages: tuple[str, ...]) -> Path:
    """Return a tar archive of a minimal Debian with `packages`."""
    archive = KEPT / f"{SUITE}-{'-'.join(packages)}.tar"
    folder, partial = archive.with_suffix(".making"), archive.with_suffix(".part")
    if not archive.exists():
        KEPT.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        words = ("--variant=minbase", f"--include={','.join(packages)}", SUITE)
        told("debootstrap", *words, folder, limit_s=DOWNLOAD_LIMIT_S)
        told("tar", "--numeric-owner", "-C", folder, "-cf", partial, ".", limit_s=DOWNLOAD_LIMIT_S)
        partial.rename(archive)
        shutil.rmtree(folder)
    return archive


def wheels() -> Path:
    """Return a folder with each file of the lock that fits Debian's Python. pip has compared their hashes."""
    folder, stamp = KEPT / "wheels", KEPT / "wheels" / "stamp"
    wanted = "".join((ROOT / "lock" / f"{name}.txt").read_text(encoding="utf-8") for name in LOCKS)
    if not stamp.is_file() or stamp.read_text(encoding="utf-8") != wanted:
        for name in LOCKS:
            words = ("download", "--quiet", "--no-deps", "--require-hashes", "--only-binary", ":all:")
            words = (*words, "--python-version", DEBIANS_PYTHON, "-d", folder)
            told(sys.executable, "-m", "pip", *words, "-r", ROOT / "lock" / f"{name}.txt", limit_s=DOWNLOAD_LIMIT_S)
        stamp.write_text(wanted, encoding="utf-8")
    return folder


def beside(lock: Path) -> Path:
    """Install what a file of the lock names into a folder of its own, beside this installation, and return it.

    Skips the test if pip cannot.
    """
    folder, wanted = KEPT / lock.stem, lock.read_text(encoding="utf-8")
    stamp = folder / "stamp"
    if not stamp.is_file() or stamp.read_text(encoding="utf-8") != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        words = ["install", "--quiet", "--no-deps", "--require-hashes", "--only-binary", ":all:"]
        command = [sys.executable, "-m", "pip", *words, "--target", str(folder), "-r", str(lock)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=DOWNLOAD_LIMIT_S)
        if done.returncode:
            pytest.skip(f"pip cannot install {lock.name}: {done.stderr.strip()[-200:]}")
        stamp.write_text(wanted, encoding="utf-8")
    return folder
