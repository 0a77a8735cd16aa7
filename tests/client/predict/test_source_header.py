"""Results repeat a name in any character set, and a header that cannot be repeated costs its own result only."""

import pydicom
import pytest
from builders.dicom_files import slice_hu, write_ct
from builders.exported import nodule_study
from typer.testing import CliRunner

from wardround_client.cli.main import app
from wardround_client.predict.predict import predict
from wardround_client.predict.source_header import source_header

NAMES = {
    "none": (None, "Doe^John"),
    "latin": ("ISO_IR 100", "Müller^Jürgen"),
    "half-width": ("ISO_IR 13", "ﾔﾏﾀﾞ^ﾀﾛｳ"),
    "japanese": (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎"),
    "chinese": ("GB18030", "Wang^XiaoDong=王^小东"),
    "utf-8": ("ISO_IR 192", "Łukasz^Żaba"),
}


def tags(case):
    character_set, name = NAMES[case]
    return {"PatientName": name, **({} if character_set is None else {"SpecificCharacterSet": character_set})}


@pytest.mark.parametrize("case", NAMES)
def test_a_name_is_the_same_in_utf_8(tmp_path, case):
    header = source_header(write_ct(tmp_path / "a.dcm", **tags(case)))
    header.save_as(tmp_path / "b.dcm", enforce_file_format=True)
    read = pydicom.dcmread(tmp_path / "b.dcm")
    assert read.SpecificCharacterSet == "ISO_IR 192"
    assert read.PatientName == NAMES[case][1]


def test_what_may_be_empty_is_added_and_what_identifies_is_needed(tmp_path):
    header = source_header(write_ct(tmp_path / "a.dcm"))
    assert (header.PatientBirthDate, header.StudyID) == ("", "")
    for name in ("PatientID", "StudyInstanceUID", "SOPInstanceUID"):
        assert source_header(write_ct(tmp_path / f"{name}.dcm", **{name: None})) is None
    (tmp_path / "text.dcm").write_bytes(b"no DICOM")
    assert source_header(tmp_path / "text.dcm") is None


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A model of whole slices with labels in other letters."""
    from builders.exported import write_exported

    study = nodule_study(region="whole", spacing_mm=None, labels=("gutartig", "Ελληνικά"))
    return write_exported(tmp_path_factory.mktemp("whole") / "model", study)


def test_each_examination_is_reported_or_counted(tmp_path, whole):
    for case in NAMES:
        study = {"PatientID": case, "StudyInstanceUID": f"1.2.{len(case)}.{ord(case[0])}"}
        write_ct(tmp_path / "data" / f"{case}.dcm", slice_hu(len(case)), **study, **tags(case))
    write_ct(tmp_path / "data" / "odd.dcm", slice_hu(30), PatientID="odd", StudyInstanceUID=None)
    result = CliRunner().invoke(app, ["predict", str(whole), str(tmp_path / "data"), "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    reports = [pydicom.dcmread(path) for path in (tmp_path / "out").glob("report-*.dcm")]
    assert sorted(str(one.PatientName) for one in reports) == sorted(name for _, name in NAMES.values())
    assert all("Probability of Ελληνικά" in str(one) for one in reports)
    assert "1 finding without a DICOM result" in result.output


def test_a_model_of_whole_slices_knows_no_distance(whole, tmp_path):
    from wardround.handover.package import open_package

    write_ct(tmp_path / "a.dcm")
    (image,) = predict(open_package(whole), tmp_path).images
    assert image.distance == 0.0 and image.prediction is not None
