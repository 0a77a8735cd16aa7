"""Every command that writes, in places that cannot be written: read-only, full, and below a file. One line each."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from builders.pictures import manifest, many
from builders.processes import free_ports

PROGRAMS = {"site": "wardround_client", "server": "wardround_server", "sim": "wardround_simulation"}
CODE = "import sys; sys.path[:0] = {path!r}; sys.argv[0] = {name!r}; from {package}.cli.main import main; main()"
STUDY = """
[study]
name = "tiny"
rounds = 1
[data]
modality = "any"
image_size = 32
labels = ["benign", "malignant"]
[privacy]
epsilon = 8
delta = 1e-6
max_grad_norm = 1.0
nominal_patients = 5
[aggregation]
nominal_sites = 1
"""
READ_ONLY = "mount -t tmpfs none {place}; cp -r {made} {place}/made; mount -o remount,ro {place}"
FULL = "mount -t tmpfs -o size=4m none {place}; cp -r {made} {place}/made; cat /dev/zero > {place}/filler 2>/dev/null"
BY = ("--by", "Ada Lovelace")
# What each program writes, below the folder {made} of a prepared server, site, study and data.
COMMANDS = (
    ("site", "init", "--server", "a.example:9092", "--name", "new", "--ca", "server/ca/ca.crt", "--site", "new"),
    ("site", "ingest", "data", "--study", "study.toml", "--site", "north", "--image-is-patient"),
    ("site", "forget", "p1", "--yes", "--site", "north"),
    ("site", "studies", "approve", "study.toml", *BY, "--yes", "--site", "north"),
    ("site", "start", "--site", "north"),
    ("server", "init", "new", "--host", "a.example"),
    ("server", "init", "server", "--renew"),
    ("server", "sites", "revoke", "north", "--yes", "--server", "server"),
    ("server", "submit", "study.toml", "--server", "server"),
    ("server", "backup", "saved.tar", "--server", "server"),
    ("server", "start", "--server", "server"),
    ("server", "restore", "backup.tar", "--server", "new"),
    ("sim", "run", "study.toml", "--data", "data", "--out", "out"),
    ("sim", "compare", "study.toml", "--data", "data", "--out", "out"),
    ("sim", "phantom", "phantoms", "--sites", "1", "--patients", "1"),
    ("sim", "federation", "--out", "federation"),
    ("sim", "pretrain", "encoder.safetensors", "--crops", "1000", "--epochs", "1"),
)  # fmt: skip
READS = (
    ("server", "sites", "list", "--server", "server"),
    ("server", "runs", "--server", "server"),
    ("site", "studies", "list", "--site", "north"),
    ("site", "status", "--site", "north"),
)


def command(program: str, *words: str) -> list[str]:
    code = CODE.format(path=[path for path in sys.path if path], name=f"wardround-{program}", package=PROGRAMS[program])
    return [sys.executable, "-c", code, *words]


def called(folder: Path, *words: str, prefix: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*prefix, *command(*words)], cwd=folder, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A server, an enrolled site, a backup, a study and data."""
    root = tmp_path_factory.mktemp("made")
    (root / "study.toml").write_text(STUDY, encoding="utf-8")
    manifest(root / "data", many())
    port = str(free_ports(1)[0])
    site = ("--server", f"127.0.0.1:{port}", "--name", "north", "--ca", "server/ca/ca.crt", "--site", "north")
    assert called(root, "server", "init", "server", "--host", "127.0.0.1", "--port", port).returncode == 0
    assert called(root, "site", "init", *site).returncode == 0
    request = next((root / "north").glob("*.json"))
    fingerprint = request.read_text(encoding="utf-8").partition('"fingerprint": "')[2][:64]
    words = ("sites", "add", str(request), "--fingerprint", fingerprint, *BY, "--server", "server")
    assert called(root, "server", *words).returncode == 0
    assert called(root, "server", "backup", "backup.tar", "--server", "server").returncode == 0
    return root


def mounted(place: Path, made: Path, script: str) -> tuple[str, ...]:
    """The start of a command line that runs the rest with `place` mounted as `script` does."""
    place.mkdir()
    prefix = ("unshare", "--map-root-user", "--mount")
    if not shutil.which("unshare") or subprocess.run([*prefix, "true"], capture_output=True).returncode != 0:
        pytest.skip("this machine lets nobody mount a disk")
    text = f'{script.format(place=place, made=made)}; cd {place}/made && exec "$@"'
    return (*prefix, "sh", "-c", text, "sh")


def is_one_line(done: subprocess.CompletedProcess[str], program: str, *parts: str) -> None:
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert done.returncode in (1, 2) and "Traceback" not in done.stderr, done.stderr
    assert lines[-1].startswith(f"wardround-{program}: "), done.stderr
    assert any(part in lines[-1] for part in parts), done.stderr
    assert not any("wardround-" in line for line in lines[:-1])


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: " ".join(words[:3]))
def test_a_read_only_disk_is_one_line(tmp_path: Path, made: Path, words: tuple[str, ...]) -> None:
    prefix = mounted(tmp_path / "place", made, READ_ONLY)
    done = called(tmp_path, *words, prefix=prefix)
    is_one_line(done, words[0], "Read-only file system; choose another folder, or have this one mounted writable")
    assert "full" not in done.stderr and "free some space" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: " ".join(words[:3]))
def test_a_full_disk_is_one_line(tmp_path: Path, made: Path, words: tuple[str, ...]) -> None:
    prefix = mounted(tmp_path / "place", made, FULL)
    is_one_line(
        called(tmp_path, *words, prefix=prefix), words[0], "No space left on device", "disk is full", "are free"
    )


@pytest.mark.parametrize("words", READS, ids=lambda words: " ".join(words[:3]))
def test_what_only_reads_works_on_a_read_only_disk(tmp_path: Path, made: Path, words: tuple[str, ...]) -> None:
    done = called(tmp_path, *words, prefix=mounted(tmp_path / "place", made, READ_ONLY))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("site", "init", "--server", "a.example:9092", "--name", "n", "--ca", "server/ca/ca.crt", "--site", "file/new"),
        ("server", "init", "file/new", "--host", "a.example"),
        ("server", "backup", "file/saved.tar", "--server", "server"),
        ("server", "restore", "backup.tar", "--server", "file/new"),
        ("sim", "run", "study.toml", "--data", "data", "--out", "file/out"),
        ("sim", "phantom", "file/phantoms"),
        ("sim", "phantom", "file"),
        ("sim", "federation", "--out", "file/federation"),
        ("sim", "pretrain", "file/encoder.safetensors"),
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_a_place_below_a_file_is_one_line(tmp_path: Path, made: Path, words: tuple[str, ...]) -> None:
    shutil.copytree(made, tmp_path / "made")
    (tmp_path / "made" / "file").write_bytes(b"")
    done = called(tmp_path / "made", *words)
    is_one_line(
        done,
        words[0],
        "Not a directory; a part of the path is a file",
        "is a file, not a folder",
        "File exists",
        "no such folder",
    )
    assert os.path.getsize(tmp_path / "made" / "file") == 0
