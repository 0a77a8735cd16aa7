"""Reports and pictures of predictions in a real PACS: a validator finds no error, and they come back unchanged."""

import subprocess
from pathlib import Path

import pytest
from builders.exported import write_exported
from typer.testing import CliRunner
from whole.pacs import missing, orthanc

from wardround_client.cli.main import app
from wardround_simulation.phantoms.dicom import write_phantom_hospitals

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> list[Path]:
    place = tmp_path_factory.mktemp("predictions")
    write_phantom_hospitals(place / "data", 1, 4, seed=3)
    words = ["predict", str(write_exported(place / "model")), str(place / "data" / "hospital-1")]
    assert CliRunner().invoke(app, [*words, "--out", str(place / "out")]).exit_code == 0
    return sorted((place / "out").glob("*.dcm"))


@pytest.fixture(scope="module", autouse=True)
def systems() -> None:
    if why := missing():
        pytest.skip(why)


def test_a_validator_finds_no_error(results):
    assert len(results) >= 6
    for path in results:
        done = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, timeout=60)
        lines = (done.stdout + done.stderr).splitlines()
        assert [line for line in lines if line.startswith("Error")] == [], path.name
        unexpected = [line for line in lines if line.startswith("Warning") and "99WARDROUND" not in line]
        assert unexpected == [], path.name


def test_they_come_back_from_orthanc_unchanged(results, tmp_path):
    with orthanc(tmp_path / "store") as pacs:
        for path in results:
            assert pacs.stored(path) == path.read_bytes(), path.name
