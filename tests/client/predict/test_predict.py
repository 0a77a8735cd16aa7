"""`wardround-site predict`, as a person runs it: a table, files, DICOM results, and refusals instead of guesses."""

import csv
import io
import json
import shutil
import subprocess
import sys

import numpy as np
import pydicom
import pytest
from builders.packages import edit_record
from PIL import Image
from typer.testing import CliRunner

from wardround.errors import ModelError
from wardround.handover.network import load_network
from wardround.handover.package import open_package
from wardround.phantoms.crops import generate_crops
from wardround_client.cli.main import app
from wardround_client.predict.predict import predict
from wardround_client.predict.results import table_of, to_csv, to_json
from wardround_simulation.phantoms.dicom import write_phantom_hospitals


@pytest.fixture(scope="session")
def hospital(tmp_path_factory):
    """A few phantom patients as DICOM, with labels.csv, which marks their nodules."""
    folder = tmp_path_factory.mktemp("phantoms")
    write_phantom_hospitals(folder, 1, 3, seed=5)
    return folder / "hospital-1"


@pytest.fixture(scope="session")
def found(exported, hospital):
    return predict(open_package(exported), hospital)


def called(*words):
    return CliRunner().invoke(app, ["predict", *map(str, words)])


def crop_file(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(generate_crops(1, seed).images_NHW[0].numpy()).save(path)
    return path


def test_scores_are_those_of_the_network_in_torch(exported, hospital, found):
    import torch

    network = load_network(open_package(exported))
    known = [one for one in found.images if one.prediction]
    assert len(known) >= 3
    images_NCHW = torch.from_numpy(np.stack([one.image.pixels_CHW for one in known]))
    with torch.no_grad():
        expected_N = network(images_NCHW)[:, 0].numpy()
    assert [one.prediction.logits[0] for one in known] == pytest.approx(expected_N, abs=1e-4)


def test_a_patient_is_the_highest_image_and_a_nodule_the_highest_of_its_slices(found, hospital):
    for group in (*found.patients, *found.nodules):
        if group.prediction is None:
            assert not group.of and group.left_out
            continue
        assert group.prediction.logits[0] == max(one.prediction.logits[0] for one in group.of)
    assert len(found.patients) == len(list(hospital.glob("patient-*")))
    assert len({one.nodule for one in found.nodules}) == len(found.nodules) >= len(found.patients)


def test_json_csv_and_table_say_the_same(found):
    plain = json.loads(json.dumps(to_json(found)))
    rows = list(csv.DictReader(io.StringIO(to_csv(found))))
    patients = [row for row in rows if row["what"] == "patient"]
    known = [(told, row) for told, row in zip(plain["patients"], patients, strict=True) if not told["refused"]]
    assert known
    for told, row in known:
        assert float(row["probability malignant"]) == pytest.approx(told["probabilities"]["malignant"], abs=1e-4)
        assert row["label_set"].split(" or ") == told["label_set"]
        assert (row["positive at 90% specificity"] == "yes") == told["decisions"][0]["positive"]
        assert float(row["low"]) <= float(row["probability malignant"]) <= float(row["high"])
    columns, lines = table_of(found)
    assert [line[3] for line in lines if line[0]] == [
        "refused" if told["refused"] else f"{told['probabilities']['malignant']:.0%}" for told in plain["patients"]
    ]
    assert all(len(line) == len(columns) for line in lines)
    assert "not a medical device" in plain["notice"]


def test_images_unlike_the_training_data_are_refused(exported, tmp_path):
    random = np.random.default_rng(0)
    Image.fromarray(random.integers(0, 256, (64, 64)).astype(np.uint8)).save(tmp_path / "noise.png")
    Image.fromarray(np.full((64, 64), 90, np.uint8)).save(tmp_path / "flat.png")
    for seed in range(6):
        crop_file(tmp_path / f"nodule-{seed}.png", 100 + seed)
    found = predict(open_package(exported), tmp_path)
    refused = {one.image.path.name for one in found.images if one.prediction is None}
    assert "noise.png" in refused
    assert not any(name.startswith("nodule") for name in refused)
    assert [one.code for one in found.refused] == ["blank"]
    told = next(one for one in to_json(found)["images"] if one["file"].endswith("noise.png"))
    assert told["refused"] == "unlike the training data"
    assert "probabilities" not in told


def test_only_refused_images_give_exit_1(exported, tmp_path):
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 64)).astype(np.uint8)).save(tmp_path / "noise.png")
    result = called(exported, tmp_path)
    assert result.exit_code == 1
    assert "unlike the training data" in result.output


def test_the_command_writes_results_and_refuses_to_overwrite(exported, hospital, tmp_path):
    result = called(exported, hospital, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "calibrated on about 80 held-out patients" in " ".join(result.output.split())
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert sum(name.startswith("report-") for name in names) == len(list(hospital.glob("patient-*")))
    assert {"predictions.json", "predictions.csv", "picture-1.dcm"} <= set(names)
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert "already exists" in str(called(exported, hospital, "--out", tmp_path / "out").exception)
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_json_is_one_document(exported, tmp_path):
    result = called(exported, crop_file(tmp_path / "a.png", 3), "--json")
    assert json.loads(result.stdout)["images"][0]["frame"] == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"calibration": {"temperature": 1}}, "calibration"),
        ({"labels": ["x", "y"]}, "labels"),
    ],
)
def test_a_damaged_model_is_one_line(exported, tmp_path, changes, message):
    copy = tmp_path / "model"
    shutil.copytree(exported, copy)
    edit_record(copy, **changes)
    error = called(copy, crop_file(tmp_path / "a.png", 3)).exception
    assert isinstance(error, ModelError)
    assert message in str(error) and "\n" not in str(error)


def test_cells_that_a_spreadsheet_would_run_are_quoted(exported, tmp_path):
    crop_file(tmp_path / "=cmd.png", 3)
    rows = list(csv.DictReader(io.StringIO(to_csv(predict(open_package(exported), tmp_path)))))
    (image,) = [row for row in rows if row["what"] == "image"]
    assert image["file"].endswith("=cmd.png") and not image["file"].startswith("=")


def test_predict_needs_no_torch(exported, tmp_path):
    crop_file(tmp_path / "a.png", 3)
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "from wardround_client.cli.main import app\n"
        f"app(['predict', {str(exported)!r}, {str(tmp_path / 'a.png')!r}, '--json'], standalone_mode=False)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["patients"]


def test_dicom_results_belong_to_the_patient_and_refer_to_the_source(exported, hospital, tmp_path):
    called(exported, hospital, "--out", tmp_path / "out")
    sources = {}
    for path in hospital.rglob("*.dcm"):
        header = pydicom.dcmread(path, stop_before_pixels=True)
        sources[header.SOPInstanceUID] = header
    for path in sorted((tmp_path / "out").glob("report-*.dcm")):
        report = pydicom.dcmread(path)
        referred = {
            image.ReferencedSOPInstanceUID
            for study in report.CurrentRequestedProcedureEvidenceSequence
            for series in study.ReferencedSeriesSequence
            for image in series.ReferencedSOPSequence
        }
        assert referred <= sources.keys() and referred
        assert {report.PatientID} == {sources[uid].PatientID for uid in referred}
        assert {report.StudyInstanceUID} == {sources[uid].StudyInstanceUID for uid in referred}
        assert (report.VerificationFlag, report.CompletionFlag) == ("UNVERIFIED", "PARTIAL")
        assert "NOT FOR DIAGNOSTIC USE" in report.SeriesDescription
        assert "Probability of malignant" in str(report)
    picture = pydicom.dcmread(tmp_path / "out" / "picture-1.dcm")
    assert "NOT FOR DIAGNOSTIC USE" in picture.SeriesDescription
    assert picture.pixel_array.shape == (496, 1024, 3)
    assert picture.pixel_array.std() > 20
