"""`wardround-site explain`, as a person runs it: a page, pictures and DICOM maps, and refusals instead of guesses."""

import hashlib
import json
import socket

import numpy as np
import pydicom
import pytest
from builders.dicom_files import write_ct
from PIL import Image
from typer.testing import CliRunner

from wardround.handover.package import open_package
from wardround.phantoms.crops import generate_crops
from wardround_client.cli.main import app
from wardround_client.explain.parametric_map import header_for_map, on_source_grid
from wardround_client.predict.reading import read_images
from wardround_client.site.paths import COHORT
from wardround_client.sources.cohort import CohortRow, write_cohort
from wardround_simulation.phantoms.dicom import write_phantom_hospitals

KEY = b"k" * 32
LABELS = ("benign", "malignant")


def called(*words):
    return CliRunner().invoke(app, ["explain", *map(str, words)])


def crop_file(path, seed):
    Image.fromarray(generate_crops(1, seed).images_NHW[0].numpy()).save(path)
    return path


@pytest.fixture(scope="module")
def hospital(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantoms")
    write_phantom_hospitals(folder, 1, 1, seed=5)
    return folder / "hospital-1"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A site with 60 patients of one phantom each."""
    folder = tmp_path_factory.mktemp("site")
    phantoms = generate_crops(60, 71)
    rows = [CohortRow(pseudonym=f"{number:064x}", label=-1) for number in range(60)]
    images = phantoms.images_NHW[:, None].numpy()
    write_cohort(folder / COHORT, rows, images, row_shape=(1, 64, 64), label_names=LABELS, site_key=KEY)
    return folder


def test_a_picture_gets_a_page_and_maps_and_nothing_is_sent(tmp_path, monkeypatch, exported, site):
    def refuse(self, address):
        raise AssertionError(f"a connection to {address}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    file = crop_file(tmp_path / "nodule.png", 9)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    done = called(exported, file, "--out", tmp_path / "out", "--site", site)
    assert done.exit_code == 0, done.output
    names = {"explanation-1.html", "evidence-1.png", "occlusion-1.png", "explanations.json"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    page = (tmp_path / "out" / "explanation-1.html").read_text()
    for text in ("Where in the image", "How the score comes about", "Simple rules", "Looks like", "nodule.png"):
        assert text in page
    plain = json.loads((tmp_path / "out" / "explanations.json").read_text())["images"][0]
    parts = {name: value for name, value in plain["score_parts"].items() if name != "explained_over_phantoms"}
    assert sum(parts.values()) == pytest.approx(plain["score"], abs=1e-4)
    assert 0.5 < plain["surrogate"]["fidelity"] <= 1 and plain["surrogate"]["tested_patients"] == 20
    assert hashlib.sha256(file.read_bytes()).hexdigest() == digest


def test_json_says_what_is_left_out_without_a_site(tmp_path, exported):
    done = called(exported, crop_file(tmp_path / "a.png", 9), "--out", tmp_path / "out", "--json")
    assert done.exit_code == 0, done.output
    plain = json.loads(done.stdout)
    assert plain["images"][0]["surrogate"] is None
    assert any("give --site" in line for line in plain["images"][0]["left_out"])
    assert len(plain["written"]) == 4


def test_a_dicom_image_gets_maps_that_refer_to_it_and_lie_on_its_grid(tmp_path, exported, hospital):
    study = open_package(exported).study
    image = next(iter(read_images(hospital, study.data).images))
    done = called(exported, image.path, "--points", hospital / "labels.csv", "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    source = pydicom.dcmread(image.path)
    for name in ("evidence", "occlusion"):
        made = pydicom.dcmread(tmp_path / "out" / f"{name}-1.dcm")
        assert made.SOPClassUID.name == "Parametric Map Storage" and made.BodyPartExamined
        assert (made.PatientID, made.StudyInstanceUID) == (source.PatientID, source.StudyInstanceUID)
        assert (made.Rows, made.Columns) == (source.Rows, source.Columns)
        assert source.SOPInstanceUID in str(made) and made.SOPInstanceUID != source.SOPInstanceUID
        assert "NOT FOR DIAGNOSTIC" in made.ImageComments and made.ContentQualification == "RESEARCH"
        pixels_HW = np.squeeze(made.pixel_array)
        x, y = image.mark_xy
        row, column = np.unravel_index(np.abs(pixels_HW).argmax(), pixels_HW.shape)
        assert np.hypot(row - y, column - x) * float(source.PixelSpacing[0]) < 64 * 0.7 / 2 * 1.5


def test_an_image_unlike_the_training_data_is_not_explained(tmp_path, exported):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    done = called(exported, tmp_path / "noise.png", "--out", tmp_path / "out")
    assert done.exit_code == 1 and "not explained: unlike the training data" in done.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "words, text",
    [
        (["missing.png"], "missing.png: no such file"),
        (["."], "is a folder; give one file"),
        (["a.png", "--out", "a.png"], "already exists"),
    ],
)
def test_mistakes_are_one_line(tmp_path, monkeypatch, exported, words, text):
    monkeypatch.chdir(tmp_path)
    crop_file(tmp_path / "a.png", 1)
    done = called(exported, *words)
    assert done.exit_code != 0 and text in str(done.exception)
    assert "\n" not in str(done.exception)


def test_a_map_of_a_box_returns_to_the_place_from_which_the_box_was_cut():
    map_hw = np.zeros((10, 10), np.float32)
    map_hw[2, 7] = 1.0
    placed_HW = on_source_grid(map_hw, (20.0, 40.0, 40.0, 60.0), (100, 90))  # two pixels of the source for each
    assert placed_HW.shape == (100, 90)
    row, column = np.unravel_index(placed_HW.argmax(), placed_HW.shape)
    assert row in (44, 45) and column in (34, 35)
    placed_HW[40:60, 20:40] = 0
    assert not placed_HW.any()


def test_only_a_single_frame_with_a_place_in_space_gets_a_dicom_map(tmp_path):
    write_ct(tmp_path / "a.dcm")
    assert header_for_map(tmp_path / "a.dcm") is None  # has no FrameOfReferenceUID
    write_ct(tmp_path / "b.dcm", FrameOfReferenceUID="1.2.3")
    assert header_for_map(tmp_path / "b.dcm") is not None
    write_ct(tmp_path / "c.dcm", FrameOfReferenceUID="1.2.3", NumberOfFrames=2)
    assert header_for_map(tmp_path / "c.dcm") is None
