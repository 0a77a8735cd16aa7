"""`wardround-sim generate`: files of synthetic images that say what they are."""

from __future__ import annotations

import csv
import errno
import json
import os
from pathlib import Path

import pydicom
import pytest
from PIL import Image
from typer.testing import CliRunner

from wardround.networks.build import initial_network
from wardround.storage.checkpoint import save_checkpoint
from wardround.study.load import Study, parse_study
from wardround_simulation import synthetic_files
from wardround_simulation.cli.main import app

LABELS = ("benign", "malignant")


def gan_study(**model) -> Study:
    return parse_study({
        "study": {"name": "made", "task": "synthesis", "rounds": 1},
        "data": {"labels": list(LABELS), "image_size": 64},
        "model": {"name": "dcgan", "init": "random", "trainable": "all"} | model,
        "training": {"learning_rate": 0.1},
        "privacy": {"epsilon": 8.0, "delta": 1e-4, "max_grad_norm": 0.3, "nominal_patients": 8},
        "aggregation": {"nominal_sites": 1},
    })  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """What a finished run leaves of its model."""
    study, folder = gan_study(), tmp_path / "run"
    folder.mkdir()
    (folder / "study.json").write_text(study.to_json(), encoding="utf-8")
    tensors = {name: tensor.numpy() for name, tensor in initial_network(study).state_dict().items()}
    privacy = {"epsilon": 7.9, "delta": 1e-4}
    save_checkpoint(folder / "model.safetensors", tensors, {"study_sha256": study.sha256(), "privacy": privacy})
    return folder


def generate(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["generate", *map(str, arguments)])
    return done.exit_code, str(done.exception) if done.exception else done.output


def test_a_grid_names_model_study_and_epsilon_and_is_never_overwritten(run: Path) -> None:
    assert generate(run, "--count", 10, "--json")[0] == 0
    with Image.open(run / "synthetic.png") as picture:
        assert picture.size == (8 * 66 - 2, 2 * 66 - 2)
        said = json.loads(picture.text["Wardround"])
    assert (said["epsilon"], said["model"], said["study"], said["unit"]) == ("7.9", "dcgan", "made", "patient")
    before = (run / "synthetic.png").read_bytes()
    code, error = generate(run, "--count", 3)
    assert code != 0 and "already exists" in error
    assert (run / "synthetic.png").read_bytes() == before


def test_a_folder_holds_each_image_once_with_its_label(run: Path, tmp_path: Path) -> None:
    code, _ = generate(run, "--count", 5, "--label", "malignant", "--format", "folder", "--out", tmp_path / "made")
    assert code == 0
    with open(tmp_path / "made" / "manifest.csv", encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["label"] for row in rows] == ["malignant"] * 5 and {row["epsilon"] for row in rows} == {"7.9"}
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == ["manifest.csv", *(r["file"] for r in rows)]
    assert len({(tmp_path / "made" / row["file"]).read_bytes() for row in rows}) == 5
    assert generate(run, "--count", 5, "--format", "folder", "--out", tmp_path / "made")[0] != 0


def test_dicom_files_are_marked_as_derived_and_synthetic_and_name_nobody(run: Path, tmp_path: Path) -> None:
    assert generate(run, "--count", 2, "--format", "dicom", "--out", tmp_path / "made")[0] == 0
    images = [pydicom.dcmread(path) for path in sorted((tmp_path / "made").glob("*.dcm"))]
    assert len({image.SOPInstanceUID for image in images}) == 2 and len({i.SeriesInstanceUID for i in images}) == 1
    for image in images:
        assert image.SOPClassUID == pydicom.uid.SecondaryCaptureImageStorage
        assert list(image.ImageType[:2]) == ["DERIVED", "SECONDARY"] and "SYNTHETIC" in image.ImageType
        assert (image.ConversionType, image.SyntheticData) == ("SYN", "YES")
        assert "epsilon 7.9" in image.DerivationDescription and "made" in image.DerivationDescription
        assert str(image.PatientID).startswith("SYNTHETIC") and image.PatientBirthDate == ""
        assert image.pixel_array.shape == (64, 64)


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["--label", "other"], "choose from benign, malignant"),
        (["--format", "tiff"], "choose from grid, folder, dicom"),
        (["--out", "nowhere/x.png"], "no such folder"),
        (["--out", "grid.jpg"], "must end in .png"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(run: Path, arguments: list[str], says: str) -> None:
    before = sorted(run.iterdir())
    code, error = generate(run, *arguments)
    assert code != 0 and says in error
    assert sorted(run.iterdir()) == before


def test_a_model_that_is_not_the_studys_is_refused(run: Path) -> None:
    (run / "study.json").write_text(gan_study(trainable="head").to_json(), encoding="utf-8")
    code, error = generate(run)
    assert code != 0 and "is not the model of the study" in error


def test_images_do_not_go_into_the_data_of_the_run(run: Path, tmp_path: Path) -> None:
    """The next run would take them for patients."""
    (tmp_path / "data").mkdir()
    claim = {"run_id": "1", "name": "made", "study_sha256": "0", "data": str(tmp_path / "data"), "test_data": None}
    (run / "run.json").write_text(json.dumps(claim), encoding="utf-8")
    code, error = generate(run, "--count", 2, "--format", "folder", "--out", tmp_path / "data" / "made")
    assert code != 0 and "lies inside" in error and "choose a place outside" in error
    assert not list((tmp_path / "data").iterdir())
    assert generate(run, "--count", 2, "--format", "folder", "--out", tmp_path / "made")[0] == 0
    (run / "run.json").write_text(json.dumps({**claim, "data": str(tmp_path)}), encoding="utf-8")
    done = CliRunner().invoke(app, ["attack", str(run)])
    assert "lies inside" in str(done.exception)


def test_a_disk_that_fails_while_images_are_written_is_one_line_and_leaves_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(synthetic_files.os, "replace", full)
    code, error = generate(run, "--count", 2, "--format", "folder", "--out", tmp_path / "made")
    assert code != 0 and "made: cannot be written: No space left on device; free some space" in error
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
