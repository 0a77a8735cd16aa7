"""Reports and pictures of predictions in a real PACS: a validator finds no error, and they come back unchanged."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pydicom
import pytest
from builders.exported import write_exported
from typer.testing import CliRunner
from whole.pacs import DICOM_PORT, HTTP_PORT, PASSWORD, USER, missing, orthanc

from wardround_client.cli.main import app
from wardround_simulation.phantoms.dicom import write_phantom_hospitals

pytestmark = pytest.mark.slow
SITE = f"""\
name = "north"
[privacy]
epsilon_cap = 8.0
delta_cap = 1e-4
[pacs.archive]
way = "{{way}}"
allow_store = true
[pacs.archive.dicom]
address = "127.0.0.1:{DICOM_PORT}"
pacs_ae = "TESTPACS"
[pacs.archive.web]
url = "http://127.0.0.1:{HTTP_PORT}/dicom-web"
user = "{USER}"
password_file = "password"
"""


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


@pytest.mark.parametrize("way", ["c-move", "web"])
def test_predict_stores_them_where_the_hospital_allows_it(results, tmp_path, way):
    """By C-STORE or STOW-RS; what the PACS then has is what lies in the folder."""
    site, data = tmp_path / "site", results[0].parents[1]
    site.mkdir()
    (site / "site.toml").write_text(SITE.format(way=way))
    (site / "password").write_text(PASSWORD)
    (site / "password").chmod(0o600)
    modalities = {"wardround": {"AET": "WARDROUND", "Host": "127.0.0.1", "Port": 11112, "AllowStore": True}}
    with orthanc(tmp_path / "store", DicomModalities=modalities) as pacs:
        words = [str(data / "model"), str(data / "data" / "hospital-1"), "--out", str(tmp_path / "out")]
        command = [*pacs.inside, sys.executable, "-m", "wardround_client.cli.main", "predict", *words]
        done = subprocess.run(
            [*command, "--store", "archive", "--site", str(site)], capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        written = sorted((tmp_path / "out").glob("*.dcm"))
        assert f"stored {len(written)} DICOM files in archive" in done.stdout
        there = {}
        for one in json.loads(pacs.call("/instances")):
            dataset = pydicom.dcmread(io.BytesIO(pacs.call(f"/instances/{one}/file")))
            there[dataset.SOPInstanceUID] = dataset
    assert there == {dataset.SOPInstanceUID: dataset for dataset in map(pydicom.dcmread, written)}
    assert all("NOT FOR DIAGNOSTIC USE" in dataset.SeriesDescription for dataset in there.values())


def test_they_come_back_from_orthanc_unchanged(results, tmp_path):
    with orthanc(tmp_path / "store") as pacs:
        for path in results:
            assert pacs.stored(path) == path.read_bytes(), path.name


def test_explain_stores_its_maps(results, tmp_path):
    site, data = tmp_path / "site", results[0].parents[1]
    site.mkdir()
    (site / "site.toml").write_text(SITE.format(way="c-move"))
    (site / "password").write_text(PASSWORD)
    (site / "password").chmod(0o600)
    hospital = data / "data" / "hospital-1"
    marked = (hospital / "labels.csv").read_text().splitlines()
    column = marked[0].split(",").index("SeriesInstanceUID")
    series = marked[1].split(",")[column]
    paths = [path for path in sorted(hospital.rglob("*.dcm")) if pydicom.dcmread(path).SeriesInstanceUID == series]
    modalities = {"wardround": {"AET": "WARDROUND", "Host": "127.0.0.1", "Port": 11112, "AllowStore": True}}
    with orthanc(tmp_path / "store", DicomModalities=modalities) as pacs:
        for number, path in enumerate(paths):
            words = [str(data / "model"), str(path), "--points", str(hospital / "labels.csv")]
            words += ["--out", str(tmp_path / f"out-{number}"), "--store", "archive", "--site", str(site)]
            command = [*pacs.inside, sys.executable, "-m", "wardround_client.cli.main", "explain", *words]
            done = subprocess.run(command, capture_output=True, text=True, timeout=300)
            if done.returncode == 0:
                break
        written = sorted((tmp_path / f"out-{number}").glob("*.dcm"))
        assert done.returncode == 0 and len(written) == 2, done.stderr
        assert "stored 2 DICOM files in archive" in done.stdout
        assert len(json.loads(pacs.call("/instances"))) == 2
