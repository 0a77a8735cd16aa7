"""The reader of predictions: the same pixels and refusals as ingestion, patients apart, sources untouched."""

import hashlib

import numpy as np
import pytest
from builders.dicom_files import KEY, ct_study, ingest_ct, slice_hu, write_ct, write_ct_series
from PIL import Image

from wardround.errors import DataError
from wardround_client.predict.reading import read_images
from wardround_client.sources.cohort import open_cohort
from wardround_client.sources.images.decoding.workers import WorkerPool

WHOLE = ct_study(region="whole", image_size=32)
MARKED = ct_study(region="marked", image_size=32)


def picture(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 40)).astype(np.uint8)).save(path)
    return path


def codes(read):
    return sorted(one.code for one in read.refused)


def test_images_are_those_of_ingestion(tmp_path):
    write_ct_series(tmp_path / "data", 4)
    read = read_images(tmp_path / "data", WHOLE)
    with WorkerPool(1) as pool:
        ingest_ct(tmp_path / "data", tmp_path / "cohort", pool, region="whole", image_size=32)
    cohort = open_cohort(tmp_path / "cohort")
    assert len(read.images) == 4
    assert np.array_equal(np.stack([one.pixels_CHW for one in read.images]), cohort.values_N[:])


def test_a_point_in_mm_gives_its_slice_and_the_neighbours_as_one_nodule(tmp_path):
    write_ct_series(tmp_path / "data", 7, step_mm=2.0)
    points = tmp_path / "points.csv"
    points.write_text("SeriesInstanceUID,coordX,coordY,coordZ\n1.5.6,20,20,6\n1.5.6,10,10,12\n")
    read = read_images(tmp_path / "data", MARKED, points)
    assert [(one.path.name, one.nodule) for one in read.images] == [
        ("002.dcm", 2), ("003.dcm", 2), ("004.dcm", 2), ("005.dcm", 3), ("006.dcm", 3),
    ]  # fmt: skip
    assert {one.patient for one in read.images} == {1}
    assert read.not_marked == 2


def test_labels_csv_of_the_folder_serves_as_points_and_its_labels_do_not_matter(tmp_path):
    write_ct_series(tmp_path, 3)
    (tmp_path / "labels.csv").write_text("SeriesInstanceUID,coordX,coordY,coordZ,label\n1.5.6,20,20,4,whatever\n")
    assert [one.nodule for one in read_images(tmp_path, MARKED).images] == [2]


def test_without_points_a_study_of_marked_regions_refuses_dicom_and_takes_pictures_as_crops(tmp_path):
    write_ct(tmp_path / "a.dcm")
    picture(tmp_path / "b.png", 1)
    read = read_images(tmp_path, MARKED)
    assert codes(read) == ["no_mark"]
    assert [one.path.name for one in read.images] == ["b.png"]


def test_what_ingestion_would_refuse_is_refused_with_its_reason(tmp_path):
    write_ct(tmp_path / "good.dcm")
    write_ct(tmp_path / "mr.dcm", Modality="MR")
    write_ct(tmp_path / "nobody.dcm", PatientID=None)
    (tmp_path / "cut.dcm").write_bytes((tmp_path / "good.dcm").read_bytes()[:600])
    (tmp_path / "text.png").write_bytes(b"\x89PNG\r\n\x1a\nno picture")
    read = read_images(tmp_path, WHOLE)
    assert [one.path.name for one in read.images] == ["good.dcm"]
    assert codes(read) == ["no_patient", "no_pixels", "unreadable", "wrong_modality"]
    assert all(one.title and one.advice for one in read.refused)


def test_patients_are_told_apart_by_header_manifest_or_file(tmp_path):
    write_ct(tmp_path / "dicom" / "1.dcm", PatientID="A")
    write_ct(tmp_path / "dicom" / "2.dcm", PatientID="B")
    write_ct(tmp_path / "dicom" / "3.dcm", PatientID="A", SOPInstanceUID="1.2.3")
    patients = {one.path.name: one.patient for one in read_images(tmp_path / "dicom", WHOLE).images}
    assert patients == {"1.dcm": 1, "2.dcm": 2, "3.dcm": 1}
    for number in range(3):
        picture(tmp_path / "pictures" / f"{number}.png", number)
    assert [one.patient for one in read_images(tmp_path / "pictures", WHOLE).images] == [1, 2, 3]
    (tmp_path / "pictures" / "manifest.csv").write_text("file,patient_id,label\n0.png,p,\n1.png,q,\n2.png,p,\n")
    assert [one.patient for one in read_images(tmp_path / "pictures", WHOLE).images] == [1, 2, 1]


def test_one_file_is_enough_and_sources_stay_as_they_are(tmp_path):
    path = write_ct(tmp_path / "a.dcm", slice_hu(4))
    write_ct(tmp_path / "b.dcm", slice_hu(5))
    before = {one: hashlib.sha256(one.read_bytes()).hexdigest() for one in tmp_path.iterdir()}
    assert [one.path.name for one in read_images(path, WHOLE).images] == ["a.dcm"]
    assert {one: hashlib.sha256(one.read_bytes()).hexdigest() for one in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("points.csv", "SeriesInstanceUID,label\n1,benign\n", "has no position"),
        ("points.csv", "what,where\n1,2\n", "needs the columns"),
    ],
)
def test_a_wrong_table_of_points_is_one_line(tmp_path, name, text, message):
    write_ct(tmp_path / "a.dcm")
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message) as raised:
        read_images(tmp_path, MARKED, tmp_path / name)
    assert "\n" not in str(raised.value)


def test_missing_and_empty_sources_are_one_line(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_images(tmp_path / "absent", WHOLE)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no image file"):
        read_images(tmp_path / "empty", WHOLE)


def test_the_record_of_an_image_has_no_identifier(tmp_path):
    write_ct(tmp_path / "a.dcm")
    (image,) = read_images(tmp_path, WHOLE).images
    assert "77-A" not in repr(image) and "CANARY" not in repr(image) and KEY.decode() not in repr(image)
