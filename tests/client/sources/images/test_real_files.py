"""Every available real DICOM file has the expected outcome or is quarantined with a reason; none causes a traceback."""

import csv
import functools
import os
from pathlib import Path

import numpy as np
import pydicom
import pytest
from paths import ROOT
from pydicom.pixels import apply_rescale, pixel_array

from wardround.sources.images.study import ImageData
from wardround_client.sources.cohort import open_cohort
from wardround_client.sources.images.decoding.dicom_pixels import read_frame
from wardround_client.sources.images.decoding.prepare import FrameAddress, Recipe, prepare, scan
from wardround_client.sources.images.decoding.workers import WorkerPool
from wardround_client.sources.images.folder.layout import discover
from wardround_client.sources.images.ingest import ingest
from wardround_client.sources.images.quality.reasons import REASONS

KEY = b"site key of the tests, 32 bytes."
TEST_DATA = Path(os.environ.get("WARDROUND_TEST_DATA", ROOT.parent / "shared" / "data"))
ANYTHING = ImageData(image_size=64, modality="any", labels=("a", "b"))
WHEEL = Path(pydicom.__file__).parent / "data" / "test_files"
# The manifest was made with the GPL libjpeg plug-in, which reads 12-bit lossy JPEG; ours do not.
TWELVE_BIT_LOSSY = "1.2.840.10008.1.2.4.51"

needs_dicom = pytest.mark.skipif(not (TEST_DATA / "dicom").is_dir(), reason=f"no DICOM test data at {TEST_DATA}")
needs_lidc = pytest.mark.skipif(not (TEST_DATA / "lidc_nodules").is_dir(), reason=f"no LIDC pack at {TEST_DATA}")


def outcome(path):
    """The reason code of the file or of its first frame, "" where it gives an image."""
    record = scan(path, ANYTHING, KEY)
    if record.fault:
        return record.fault
    frame = record.frames[0]
    return prepare(Recipe(kind=record.kind, here=FrameAddress(path=path, spacing_mm=frame.spacing_mm)), ANYTHING).fault


@needs_dicom
def test_the_real_files_end_as_their_manifest_expects():
    with open(TEST_DATA / "dicom/manifest.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) >= 35
    for line in lines:
        code = outcome(TEST_DATA / "dicom" / line["file"])
        decodes = not line["pixel_array"].startswith("ERR") and line["transfer_syntax"] != TWELVE_BIT_LOSSY
        assert (code == "") == decodes, (line["file"], code)
        if not decodes:
            assert REASONS[code].fault


@needs_dicom
@pytest.mark.parametrize("name", ["CTImage.dcm", "693_J2KR.dcm", "explicit_VR-UN.dcm"])
def test_hounsfield_units_of_real_slices_are_those_of_pydicom(name):
    path = TEST_DATA / "dicom/files" / name
    frame = read_frame(path, 0)
    expected = apply_rescale(pixel_array(path), pydicom.dcmread(path, stop_before_pixels=True))
    inside = frame.values > -1500
    assert frame.hu and inside.mean() > 0.5 and np.array_equal(frame.values[inside], expected[inside])


@needs_dicom
def test_one_slice_in_eight_transfer_syntaxes_is_one_picture():
    paths = sorted((TEST_DATA / "dicom/files").glob("CTImage.dcm*"))
    lossless = [path for path in paths if not any(f"2.4.{n}." in path.name for n in (51, 53, 81))]
    assert len(lossless) == 7
    hashes = {read_frame(path, 0).values.tobytes() for path in lossless}
    assert len(hashes) == 1
    (lossy,) = (path for path in paths if "2.4.81." in path.name)
    assert np.abs(read_frame(lossy, 0).values - read_frame(lossless[0], 0).values).max() <= 3


def test_every_file_of_the_pydicom_wheel_gives_an_image_or_a_reason():
    codes = {path: outcome(path) for path in sorted(WHEEL.rglob("*")) if path.is_file()}
    assert len(codes) > 80
    assert all(code == "" or REASONS[code].fault for code in codes.values())
    made = {path.name for path, code in codes.items() if not code}
    assert made >= {"CT_small.dcm", "MR_small_RLE.dcm", "examples_palette.dcm", "SC_rgb_jpeg_gdcm.dcm", "image_dfl.dcm"}
    named = {path.name: code for path, code in codes.items()}
    assert named["MR_truncated.dcm"] == "unreadable" and named["liver_1frame.dcm"] == "not_an_image"
    assert named["rtplan.dcm"] == named["test-SR.dcm"] == named["DICOMDIR"] == "no_pixels"


FUZZED = ("CT_small.dcm", "MR_small_RLE.dcm", "JPEG2000.dcm", "MR_small_jpeg_ls_lossless.dcm", "SC_rgb_jpeg_dcmtk.dcm")


def test_damaged_files_give_an_image_or_a_reason(tmp_path):
    random = np.random.default_rng(7)
    paths = []
    for name in FUZZED:
        content = np.frombuffer((WHEEL / name).read_bytes() if (WHEEL / name).is_file() else b"", np.uint8)
        for number in range(14):
            damaged = content.copy()
            damaged[random.integers(132, min(len(damaged), 3000 if number % 2 else len(damaged)), 12)] = (
                random.integers(256)
            )
            paths.append(tmp_path / f"{number}-{name}")
            paths[-1].write_bytes(damaged[: random.integers(200, len(damaged))] if number % 5 == 0 else damaged)
    known = set(REASONS) | {""}
    with WorkerPool(2, item_limit_s=30) as pool:
        records = list(pool.map(functools.partial(scan, data=ANYTHING, key=KEY), paths))
        sound = [path for path, record in zip(paths, records, strict=True) if not getattr(record, "fault", "lost")]
        recipes = [Recipe(kind="dicom", here=FrameAddress(path=path)) for path in sound]
        images = list(pool.map(functools.partial(prepare, data=ANYTHING), recipes))
    codes = [getattr(result, "code", getattr(result, "fault", "")) for result in (*records, *images)]
    assert set(codes) <= known and len(sound) > 10 and len(set(codes)) > 2


@needs_dicom
def test_the_same_files_through_ingest_are_a_cohort_and_a_quarantine(tmp_path):
    folder = TEST_DATA / "dicom" / "files"
    (source,) = discover(folder, ANYTHING, 1)
    report = ingest(source, ANYTHING, tmp_path, KEY, workers=2)
    cohort = open_cohort(tmp_path)
    assert report.quality.rows == len(cohort.values_N) > 10
    assert report.quality.quarantined.keys() >= {"no_pixels", "no_decoder", "not_an_image", "no_patient", "duplicate"}
    assert "unreadable" not in report.quality.quarantined


@needs_lidc
def test_the_lidc_pack_is_six_sites_without_a_patient_in_common(tmp_path):
    data = ImageData(labels=("benign", "malignant"), region="marked")
    sources = discover(TEST_DATA / "lidc_nodules", data)
    assert [source.name for source in sources] == ["GE_1", "GE_2", "GE_3", "PHILIPS", "SIEMENS", "TOSHIBA"]
    assert sum(source.left_out for source in sources) == 676
    with WorkerPool(2) as pool:
        reports = {s.name: ingest(s, data, tmp_path / s.name, KEY, workers=2, pool=pool) for s in sources[-1:]}
    toshiba = reports["TOSHIBA"].quality
    assert toshiba.classes["malignant"]["images"] == 54 and toshiba.classes["benign"]["images"] == 76
    assert toshiba.patients == 27 and not toshiba.quarantined
