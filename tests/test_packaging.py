"""The built wheel without the repository: its contents, and that its ready studies are found."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder
from paths import ROOT, STUDIES

LOAD_DEFAULT = """
from wardround.study.load import load_study
from wardround.study.ready_studies import ready_study
print(ready_study("demo"))
print(load_study(ready_study("demo")).study.name)
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The wheel unpacked into a folder, as pip would install it."""
    folder = tmp_path_factory.mktemp("wheel")
    (wheel,) = WheelBuilder(str(ROOT)).build(directory=str(folder))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site-packages")
    return folder / "site-packages"


def called(installed: Path, empty: Path, *words: str) -> subprocess.CompletedProcess:
    """Python in an empty folder, with the unpacked wheel before everything else."""
    environment = os.environ | {"PYTHONPATH": str(installed)}
    return subprocess.run(
        [sys.executable, *words], cwd=empty, env=environment, capture_output=True, text=True, timeout=60
    )


def test_the_wheel_has_every_ready_study_and_every_file_that_the_packages_read(installed: Path) -> None:
    ready = {path.name: path.read_bytes() for path in (installed / "wardround/study/ready").iterdir()}
    assert ready == {path.name: path.read_bytes() for path in STUDIES.iterdir()}
    roots = (ROOT / "shared", ROOT / "client", ROOT / "server", ROOT / "simulation")
    data = {
        path.relative_to(root).as_posix()
        for root in roots
        for kind in ("*.j2", "*.safetensors", "*.css", "*.min.js", "texts/*.toml")
        for path in root.rglob(kind)
    }
    assert data and {name for name in data if not (installed / name).is_file()} == set()
    packages = {"wardround", "wardround_client", "wardround_server", "wardround_simulation"}
    assert {path.name for path in installed.iterdir() if path.suffix != ".dist-info"} == packages


def test_an_installed_wheel_finds_its_default_study_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    done = called(installed, tmp_path, "-c", LOAD_DEFAULT)
    assert done.returncode == 0, done.stderr
    path, name = done.stdout.splitlines()
    assert name == "demo" and Path(path).is_relative_to(installed)
    helped = called(installed, tmp_path, "-m", "wardround_simulation.cli.main", "run", "--help")
    assert helped.returncode == 0 and "STUDY" in helped.stdout, helped.stderr
    assert list(tmp_path.iterdir()) == []
