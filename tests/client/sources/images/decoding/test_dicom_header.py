"""DICOM: Hounsfield units, order, marks, frames and neighbours are correct, and identity ends at the record."""

import csv
import json
import os

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from wardround.sources.images.study import ImageData
from wardround_client.sources.cohort import open_cohort, pseudonym
from wardround_client.sources.images.decoding.dicom_pixels import read_frame
from wardround_client.sources.images.decoding.prepare import FrameAddress, Recipe, prepare, scan
from wardround_client.sources.images.decoding.workers import WorkerPool
from wardround_client.sources.images.folder.layout import discover
from wardround_client.sources.images.ingest import ingest
from wardround_client.sources.images.plan import MARK_REACH_MM, group_series, plan_images

KEY = b"site key of the tests, 32 bytes."
LABELS = ("benign", "malignant")
AXIAL, CORONAL = [1, 0, 0, 0, 1, 0], [1, 0, 0, 0, 0, -1]


@pytest.fixture(scope="module")
def pool():
    with WorkerPool(1) as workers:
        yield workers


def study(**settings):
    return ImageData(**{"image_size": 32, "labels": LABELS, **settings})


def body(seed=0, size=64):
    """A slice in HU: air around, a body of 40 HU with noise, a lung of -800."""
    y, x = np.mgrid[:size, :size] / size - 0.5
    hu = np.full((size, size), -1000.0)
    hu[x**2 + y**2 < 0.16] = 40
    hu[(x - 0.15) ** 2 + y**2 < 0.02] = -800
    return np.maximum(-1020, np.rint(hu + np.random.default_rng(seed).normal(0, 10, hu.shape)))


def write_dicom(path, hu, **tags):
    """One uncompressed file; `hu` may be H x W or F x H x W, stored as value + 1024."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = generate_uid()
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.PatientID, dataset.PatientName, dataset.Modality = "P1", "CANARY^Name", "CT"
    dataset.SeriesInstanceUID, dataset.StudyInstanceUID = "1.2.3", "1.2"
    dataset.Rows, dataset.Columns = hu.shape[-2:]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation = 15, 0
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024
    dataset.PixelSpacing, dataset.ImageOrientationPatient = [1.0, 1.0], AXIAL
    dataset.ImagePositionPatient = [0.0, 0.0, 0.0]
    if hu.ndim == 3:
        dataset.NumberOfFrames = len(hu)
    dataset.PixelData = np.clip(hu + 1024, 0, 65535).astype("<u2").tobytes()
    for name, value in tags.items():
        if value is None:
            del dataset[name]
        else:
            setattr(dataset, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return dataset


def write_series(folder, count, *, patient="P1", series="1.2.3", step_mm=5.0, seed=0, **tags):
    """Slices whose file names and instance numbers run against their positions."""
    return [
        write_dicom(
            folder / f"{series}-{count - index:03d}.dcm",
            body(seed + index) + index,
            PatientID=patient,
            SeriesInstanceUID=series,
            InstanceNumber=count - index,
            ImagePositionPatient=[0.0, 0.0, index * step_mm],
            **tags,
        )
        for index in range(count)
    ]


def write_labels(folder, header, rows):
    with open(folder / "labels.csv", "w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def run(folder, out, data, pool):
    (source,) = discover(folder, data, 1)
    return ingest(source, data, out, KEY, workers=1, pool=pool)


def test_hounsfield_units_are_those_of_pydicom(tmp_path):
    path = pydicom.data.get_testdata_file("CT_small.dcm")
    dataset = pydicom.dcmread(path)
    expected = pydicom.pixels.apply_rescale(dataset.pixel_array, dataset)
    frame = read_frame(tmp_path.__class__(path), 0)
    assert frame.hu and np.array_equal(frame.values, expected)


def test_the_window_maps_hounsfield_units_to_grey(tmp_path, pool):
    hu = body()
    write_dicom(tmp_path / "data/a.dcm", hu)
    write_dicom(tmp_path / "data/b.dcm", body(1), PatientID="P2")
    data = study(image_size=64, window_hu=((-1000, 400), (-160, 240)), channels="windows")
    run(tmp_path / "data", tmp_path / "out", data, pool)
    cohort = open_cohort(tmp_path / "out")
    for channel, (low, high) in enumerate(data.window_hu):
        expected = np.rint(np.clip((hu - low) / (high - low) * 255, 0, 255))
        assert np.abs(cohort.values_N[0, channel] - expected).max() <= 1
    assert set(cohort.extra["hu"]) == {"1"}


@pytest.mark.parametrize("transfer", ["photometric", "padding", "rescale"])
def test_hounsfield_units_survive_what_scanners_write(tmp_path, transfer):
    hu = body()
    halved = (hu + 2048) // 2
    tags = {
        "photometric": {"PhotometricInterpretation": "MONOCHROME1"},
        "padding": {"PixelPaddingValue": 0},
        "rescale": {"RescaleSlope": 2, "RescaleIntercept": -2048, "PixelData": halved.astype("<u2").tobytes()},
    }[transfer]
    if transfer == "padding":
        hu[:5] = -1024
    write_dicom(tmp_path / "a.dcm", hu, **tags)
    values = read_frame(tmp_path / "a.dcm", 0).values
    assert np.abs(values - hu)[10:].max() <= 1
    if transfer == "padding":
        assert (values[:5] < -1400).all()


def test_monochrome1_without_units_is_inverted(tmp_path):
    ramp = np.tile(np.arange(64.0), (64, 1)) * 10
    for name in ("MONOCHROME1", "MONOCHROME2"):
        write_dicom(tmp_path / name, ramp, Modality="CR", RescaleSlope=None, PhotometricInterpretation=name)
    inverted, plain = (read_frame(tmp_path / name, 0).values for name in ("MONOCHROME1", "MONOCHROME2"))
    assert np.allclose(inverted, 255 - plain, atol=1e-3)
    assert plain[0, 0] < 5 and plain[0, -1] > 250 and (np.diff(plain[0]) >= 0).all()


def test_slices_are_sorted_along_their_normal_and_series_are_kept_apart(tmp_path, pool):
    for series, seed in (("1.2.3", 0), ("1.2.4", 50)):
        write_series(tmp_path / "data", 5, series=series, seed=seed)
    data = study(image_size=64)
    run(tmp_path / "data", tmp_path / "out", data, pool)
    images = open_cohort(tmp_path / "out").values_N[:, 0].astype(float)
    grey_per_hu = 255 / 1400
    for first, seed in ((0, 0), (5, 50)):
        for index in range(5):
            expected = (body(seed + index) + index + 1000) * grey_per_hu
            assert np.abs(images[first + index] - np.clip(expected, 0, 255)).max() <= 1


def test_slices_below_and_above_are_the_neighbouring_channels(tmp_path, pool):
    write_series(tmp_path / "data", 4)
    run(tmp_path / "data", tmp_path / "out", study(channels="slices"), pool)
    images = open_cohort(tmp_path / "out").values_N
    assert images.shape == (4, 3, 32, 32)
    for index in range(4):
        assert np.array_equal(images[index, 0], images[max(0, index - 1), 1])
        assert np.array_equal(images[index, 2], images[min(3, index + 1), 1])


def test_a_gap_is_a_remark_and_a_fault_where_neighbours_are_read(tmp_path, pool):
    datasets = write_series(tmp_path / "data", 8)
    os.remove(next(p for p in (tmp_path / "data").iterdir() if p.name.endswith(f"{8 - 3:03d}.dcm")))
    assert len(datasets) == 8
    plain = run(tmp_path / "data", tmp_path / "a", study(), pool).quality
    assert plain.rows == 7 and plain.remarks["slice_gap_seen"] == 1
    stacked = run(tmp_path / "data", tmp_path / "b", study(channels="slices"), pool).quality
    assert stacked.rows == 5 and stacked.quarantined == {"slice_gap": 2}


def test_frames_of_an_enhanced_object_have_their_own_place_and_rescale(tmp_path, pool):
    hu = np.stack([body(index) for index in range(3)])
    frames = []
    for index in range(3):
        groups, position, values = Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = [0.0, 0.0, float(-index)]
        values.RescaleSlope, values.RescaleIntercept, values.RescaleType = 1, -1024 + index, "HU"
        groups.PlanePositionSequence, groups.PixelValueTransformationSequence = [position], [values]
        frames.append(groups)
    shared, orientation, measures = Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient, measures.PixelSpacing = AXIAL, [0.5, 0.5]
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [orientation], [measures]
    write_dicom(
        tmp_path / "data/a.dcm",
        hu,
        PerFrameFunctionalGroupsSequence=frames,
        SharedFunctionalGroupsSequence=[shared],
        RescaleSlope=None,
        RescaleIntercept=None,
        PixelSpacing=None,
        ImageOrientationPatient=None,
        ImagePositionPatient=None,
    )
    record = scan(tmp_path / "data/a.dcm", study(), KEY)
    assert [frame.position_mm[2] for frame in record.frames] == [0, -1, -2]
    assert record.frames[1].spacing_mm == (0.5, 0.5)
    run(tmp_path / "data", tmp_path / "out", study(image_size=64), pool)
    images = open_cohort(tmp_path / "out").values_N[:, 0]
    for row, index in enumerate((2, 1, 0)):  # sorted from below
        expected = np.clip((hu[index] + index + 1000) * 255 / 1400, 0, 255)
        assert np.abs(images[row] - expected).max() <= 1


def test_a_marked_pixel_is_the_centre_of_the_crop(tmp_path, pool):
    hu = body()
    hu[20:23, 30:33] = 900  # a bright 3 x 3 spot around x = 31, y = 21
    spot = write_dicom(tmp_path / "data/a.dcm", hu)
    other = write_dicom(tmp_path / "data/b.dcm", body(1), PatientID="P2")
    rows = [(spot.SOPInstanceUID, 31, 21, "malignant"), (other.SOPInstanceUID, 2, 2, "benign")]
    write_labels(tmp_path / "data", ("SOPInstanceUID", "x", "y", "label"), rows)
    for spacing_mm, sharp in ((None, 9), (2.0, 1)):
        out = tmp_path / f"out{spacing_mm}"
        run(tmp_path / "data", out, study(region="marked", spacing_mm=spacing_mm), pool)
        cohort = open_cohort(out)
        bright = np.argwhere(cohort.values_N[0, 0] >= 250)
        assert len(bright) >= sharp and np.abs(bright.mean(0) - 15.5).max() <= 0.6
        assert cohort.labels_N.tolist() == [1, 0]
        assert (cohort.values_N[1, 0, :8] == 0).all()  # beyond the edge: the low end of the window


@pytest.mark.parametrize("step_mm, expected", [(2.0, [8.0, 10.0, 12.0]), (1.5, [9.0, 10.5, 12.0]), (6.0, [12.0])])
def test_a_point_in_mm_marks_the_nearest_slice_and_near_neighbours(tmp_path, step_mm, expected):
    write_series(tmp_path / "data", 10, step_mm=step_mm, PixelSpacing=[0.5, 2.0])
    rows = [("1.2.3", 40.0, 11.0, 11.0 - step_mm / 1e3, "malignant"), ("1.2.3", 0, 0, 500, "benign")]
    write_labels(tmp_path / "data", ("seriesuid", "coordX", "coordY", "coordZ", "label"), rows)
    data = study(region="marked")
    (source,) = discover(tmp_path / "data", data, 1)
    scanned = [scan(source.root / file.path, data, KEY) for file in source.files]
    plan = plan_images(source, scanned, [record.pseudonym for record in scanned], data, KEY)
    heights = [scanned[request.file].frames[0].position_mm[2] for request in plan.requests]
    assert heights == expected and MARK_REACH_MM == 3.0
    assert all(request.mark_xy == pytest.approx((20.0, 22.0)) for request in plan.requests)
    assert [finding.code for finding in plan.findings] == ["mark_outside", "not_marked"]


def test_without_positions_the_instance_numbers_decide(tmp_path):
    write_series(tmp_path / "data", 4)
    for path in (tmp_path / "data").iterdir():
        dataset = pydicom.dcmread(path)
        del dataset.ImagePositionPatient
        dataset.save_as(path)
    paths = sorted((tmp_path / "data").iterdir())
    scanned = [scan(path, study(), KEY) for path in paths]
    (series,) = group_series(scanned, ["p"] * 4)
    assert [scanned[file].instance_number for file, _ in series.places] == [1, 2, 3, 4]


FAULTS = {
    "wrong_modality": {"Modality": "MR"},
    "wrong_body_part": {"BodyPartExamined": "HEAD"},
    "not_axial": {"ImageOrientationPatient": CORONAL},
    "localizer": {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]},
    "burned_in": {"BurnedInAnnotation": "YES"},
    "screenshot": {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"},
    "no_patient": {"PatientID": ""},
    "implausible_hu": {"RescaleIntercept": 0},
    "blank": {"PixelData": np.full((64, 64), 1024, "<u2").tobytes()},
    "no_pixels": {"PixelData": None},
    "unreadable": {"PixelData": b"\0\0"},
    "too_large": {"Rows": 60000, "Columns": 60000},
}


def test_each_fault_is_found_and_stops_nothing_else(tmp_path, pool):
    for index, (name, tags) in enumerate(FAULTS.items()):
        write_dicom(tmp_path / f"data/{name}.dcm", body(index), **tags)
    write_dicom(tmp_path / "data/good.dcm", body(99), BodyPartExamined="chest")
    (tmp_path / "data/junk.dcm").write_bytes(b"\0" * 200)
    report = run(tmp_path / "data", tmp_path / "out", study(body_part="CHEST"), pool)
    with open(tmp_path / "out/quarantine.csv", newline="") as file:
        found = {line["path"]: line["code"] for line in csv.DictReader(file)}
    assert found == {**{f"{name}.dcm": name for name in FAULTS}, "junk.dcm": "unreadable"}
    assert report.quality.rows == 1 and sum(report.quality.quarantined.values()) == len(found)
    assert report.quality.accounted == {"used": 1, "put_aside": report.quality.files - 1, "left_out": 0}


def test_labels_belong_to_images_and_contradictions_are_set_aside(tmp_path, pool):
    for patient, series in (("P1", "1.1"), ("P2", "1.2"), ("P3", "1.3"), ("P4", "1.4")):
        write_series(tmp_path / "data", 2, patient=patient, series=series, seed=10 * int(patient[1]))
    rows = [("P1", "benign"), ("P2", "malignant"), ("P2", "benign"), ("P4", "unsure"), ("P9", "benign")]
    write_labels(tmp_path / "data", ("PatientID", "label"), rows)
    report = run(tmp_path / "data", tmp_path / "out", study(), pool)
    cohort = open_cohort(tmp_path / "out")
    assert cohort.labels_N.tolist() == [0, 0, -1, -1]  # P1 benign, P3 without a label, P4 left out
    assert report.quality.quarantined == {"two_labels": 2} and report.quality.unlabelled == 2
    assert report.quality.remarks.items() >= {"unmatched_label": 1, "label_left_out": 1, "no_label": 2}.items()


def test_the_same_picture_under_two_patients_is_used_for_neither(tmp_path, pool):
    write_dicom(tmp_path / "data/a.dcm", body(1))
    write_dicom(tmp_path / "data/b.dcm", body(1), PatientID="P2")
    write_dicom(tmp_path / "data/c.dcm", body(2))
    write_dicom(tmp_path / "data/d.dcm", body(2))
    report = run(tmp_path / "data", tmp_path / "out", study(), pool)
    assert report.quality.quarantined == {"duplicate": 1, "two_patients": 2} and report.quality.rows == 1


def test_a_patient_is_the_patient_id_whatever_the_issuer(tmp_path, pool):
    """An optional field must not split a patient, who would then be protected half, and forgotten half."""
    write_dicom(tmp_path / "data/a.dcm", body(1), IssuerOfPatientID="CANARY-A")
    write_dicom(tmp_path / "data/b.dcm", body(2), IssuerOfPatientID="CANARY-B")
    write_dicom(tmp_path / "data/c.dcm", body(3), PatientID="P1 ")
    report = run(tmp_path / "data", tmp_path / "out", study(), pool)
    cohort = open_cohort(tmp_path / "out")
    assert cohort.pseudonyms == (pseudonym(KEY, "P1"),) and cohort.patient_N.tolist() == [0, 0, 0]
    assert report.quality.remarks["several_issuers"] == 1


def test_an_objection_of_an_earlier_version_holds_for_all_files_of_the_patient(tmp_path, pool):
    write_dicom(tmp_path / "data/a.dcm", body(1), IssuerOfPatientID="A")
    write_dicom(tmp_path / "data/b.dcm", body(2))
    write_dicom(tmp_path / "data/c.dcm", body(3), PatientID="P2", IssuerOfPatientID="A")
    (source,) = discover(tmp_path / "data", study(), 1)
    gone = frozenset({pseudonym(KEY, "P1", "A")})
    report = ingest(source, study(), tmp_path / "out", KEY, workers=1, pool=pool, objectors=gone)
    assert open_cohort(tmp_path / "out").pseudonyms == (pseudonym(KEY, "P2"),)
    assert report.quality.quarantined == {"opted_out": 2}


def test_a_file_that_names_several_patients_is_put_aside(tmp_path, pool):
    write_dicom(tmp_path / "data/a.dcm", body(1))
    write_dicom(tmp_path / "data/b.dcm", body(2), PatientID=["P1", "P2"])
    assert run(tmp_path / "data", tmp_path / "out", study(), pool).quality.quarantined == {"several_patients": 1}


@pytest.mark.parametrize(
    "tags",
    [
        {"PatientSpeciesDescription": "Canine species"},
        {"PatientBreedDescription": "Labrador"},
        {"PatientSpeciesCodeSequence": "448771007"},
    ],
)
def test_an_animal_is_put_aside_and_a_person_is_not(tmp_path, pool, tags):
    def coded(tags):
        value = tags.get("PatientSpeciesCodeSequence")
        return tags if value is None else {"PatientSpeciesCodeSequence": [code(value)]}

    def code(value):
        item = Dataset()
        item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "SCT", "a species"
        return item

    write_dicom(tmp_path / "data/animal.dcm", body(1), **coded(tags))
    write_dicom(tmp_path / "data/a.dcm", body(2), PatientSpeciesDescription="Homo sapiens")
    write_dicom(tmp_path / "data/b.dcm", body(3), PatientSpeciesCodeSequence=[code("337915000")])
    report = run(tmp_path / "data", tmp_path / "out", study(), pool)
    assert report.quality.quarantined == {"not_human": 1} and report.quality.rows == 2


def test_no_number_of_frames_loses_a_file(tmp_path, pool):
    """A negative number gave a file no frames, so that it was neither used nor put aside."""
    for index, frames in enumerate((0, -1, -20_000, 1)):
        write_dicom(tmp_path / f"data/{index}.dcm", body(index), NumberOfFrames=frames)
    report = run(tmp_path / "data", tmp_path / "out", study(), pool)
    assert report.quality.rows == 2 and report.quality.quarantined == {"no_pixels": 2}


def test_frames_of_one_file_are_one_line_of_the_quarantine(tmp_path, pool):
    write_dicom(tmp_path / "data/a.dcm", np.stack([np.full((64, 64), -1000.0)] * 500))
    write_dicom(tmp_path / "data/b.dcm", body(2), PatientID="P2")
    report = run(tmp_path / "data", tmp_path / "out", study(), pool)
    lines = (tmp_path / "out/quarantine.csv").read_text().splitlines()
    assert report.quality.quarantined == {"blank": 500} and len(lines) == 2
    assert report.quality.accounted is not None and sum(report.quality.accounted.values()) == report.quality.files
    assert "500 frames between 1 and 500" in lines[1]


def test_one_slice_without_a_position_does_not_take_the_others(tmp_path, pool):
    data = study(channels="slices")
    write_series(tmp_path / "data", 5)
    write_dicom(tmp_path / "data/stray.dcm", body(9), SeriesInstanceUID="1.2.3", ImagePositionPatient=None)
    report = run(tmp_path / "data", tmp_path / "out", data, pool)
    assert report.quality.quarantined == {"no_position": 1} and report.quality.rows == 5
    values = open_cohort(tmp_path / "out").values_N
    assert np.array_equal(values[2, 0], values[1, 1]) and np.array_equal(values[2, 2], values[3, 1])


def test_a_point_in_mm_in_a_series_without_positions_is_named_so(tmp_path, pool):
    """It was called a point outside the image."""
    write_series(tmp_path / "data", 3)
    write_dicom(tmp_path / "data/a.dcm", body(9), SeriesInstanceUID="9.9", ImagePositionPatient=None, PatientID="P2")
    rows = [("1.2.3", 0, 0, 5, "benign"), ("9.9", 0, 0, 5, "malignant")]
    write_labels(tmp_path / "data", ("SeriesInstanceUID", "coordX", "coordY", "coordZ", "label"), rows)
    report = run(tmp_path / "data", tmp_path / "out", study(region="marked"), pool)
    assert report.quality.quarantined == {"no_position": 1}


def test_one_frame_that_is_not_axial_costs_only_itself(tmp_path, pool):
    def group(orientation, z):
        item, plane, position = Dataset(), Dataset(), Dataset()
        plane.ImageOrientationPatient, position.ImagePositionPatient = orientation, [0.0, 0.0, z]
        item.PlaneOrientationSequence, item.PlanePositionSequence = [plane], [position]
        return item

    groups = [group(CORONAL if index == 2 else AXIAL, index * 5.0) for index in range(4)]
    hu = np.stack([body(index) + index for index in range(4)])
    tags = {"ImageOrientationPatient": None, "ImagePositionPatient": None, "PerFrameFunctionalGroupsSequence": groups}
    write_dicom(tmp_path / "data/a.dcm", hu, **tags)
    report = run(tmp_path / "data", tmp_path / "out", study(), pool)
    assert report.quality.rows == 3 and report.quality.quarantined == {"not_axial": 1}


def test_orientations_that_differ_by_rounding_are_one_series(tmp_path, pool):
    """0.005 rounds up or down: the series was split, and a slice's neighbours were two slices away."""
    for index in range(6):
        tilt = 0.005 + (1e-4 if index % 2 else -1e-4)
        write_dicom(
            tmp_path / f"data/{index}.dcm",
            body(index) + index,
            ImageOrientationPatient=[1, 0, 0, 0, (1 - tilt**2) ** 0.5, tilt],
            ImagePositionPatient=[0.0, 0.0, index * 5.0],
        )
    run(tmp_path / "data", tmp_path / "out", study(channels="slices"), pool)
    values = open_cohort(tmp_path / "out").values_N
    assert len(values) == 6
    for index in range(1, 5):
        assert np.array_equal(values[index, 0], values[index - 1, 1])
        assert np.array_equal(values[index, 2], values[index + 1, 1])


def test_a_patient_called_canary_reaches_no_output(tmp_path, pool, capfd, caplog):
    folder = tmp_path / "data"
    canary = {"PatientID": "CANARY7", "SeriesInstanceUID": "1.2.777", "AccessionNumber": "CANARY8"}
    good = write_dicom(folder / "CANARY_good.dcm", body(1), **canary)
    write_dicom(folder / "CANARY_bad.dcm", body(2), **canary, BodyPartExamined="CANARY9")
    write_dicom(folder / "CANARY_broken.dcm", body(3), **canary, PixelData=b"CANARY")
    write_labels(folder, ("SOPInstanceUID", "label"), [(good.SOPInstanceUID, "benign"), ("CANARY1", "malignant")])
    report = run(folder, tmp_path / "out", study(body_part="CHEST"), pool)
    assert report.quality.rows == 1 and report.quality.quarantined == {"unreadable": 1, "wrong_body_part": 1}
    holding = []
    for path in sorted((tmp_path / "out").rglob("*")):
        content = path.read_bytes()
        if any(text in content for text in (b"CANARY", b"1.2.777", good.SOPInstanceUID.encode())):
            holding.append(path.name)
            assert path.stat().st_mode & 0o777 == 0o600
    assert holding == ["quarantine.csv"]
    said = "".join(capfd.readouterr()) + caplog.text + json.dumps(report.to_json()) + repr(report)
    assert "CANARY" not in said and "1.2.777" not in said
    record = scan(folder / "CANARY_good.dcm", study(), KEY)
    assert "CANARY" not in repr(record) and "CANARY" not in repr(discover(folder, study(), 1))


def test_a_header_that_lies_about_its_frames_is_no_traceback(tmp_path):
    write_dicom(tmp_path / "a.dcm", body(), NumberOfFrames=5)
    assert scan(tmp_path / "a.dcm", study(), KEY).fault == ""
    assert prepare(Recipe(kind="dicom", here=FrameAddress(path=tmp_path / "a.dcm", frame=4)), study()).fault
    write_dicom(tmp_path / "b.dcm", body(), NumberOfFrames=2_000_000_000)
    assert scan(tmp_path / "b.dcm", study(), KEY).fault == "too_large"


def without_preamble(path, dataset):
    """Only the data set, as some archives write it: neither preamble nor file meta information."""
    from pydicom.filebase import DicomFileLike
    from pydicom.filewriter import write_dataset

    with open(path, "wb") as file:
        content = DicomFileLike(file)
        content.is_little_endian, content.is_implicit_VR = True, path.stem.startswith("implicit")
        plain = Dataset()
        plain.update({element.tag: element for element in dataset})
        write_dataset(content, plain)


@pytest.mark.parametrize("name", ["implicit", "explicit"])
def test_a_data_set_without_preamble_or_transfer_syntax_is_read(tmp_path, pool, name):
    dataset = write_dicom(tmp_path / "whole.dcm", body(1))
    (tmp_path / "data").mkdir()
    without_preamble(tmp_path / f"data/{name}.dcm", dataset)
    expected = read_frame(tmp_path / "whole.dcm", 0)
    found = read_frame(tmp_path / f"data/{name}.dcm", 0)
    assert found.hu and np.array_equal(found.values, expected.values)
    assert run(tmp_path / "data", tmp_path / "out", study(), pool).quality.rows == 1


def test_an_image_that_lacks_only_its_class_is_read(tmp_path, pool):
    write_dicom(tmp_path / "a.dcm", body(1))
    dataset = pydicom.dcmread(tmp_path / "a.dcm")
    del dataset.SOPClassUID
    del dataset.file_meta.MediaStorageSOPClassUID
    (tmp_path / "data").mkdir()
    dataset.save_as(tmp_path / "data/a.dcm", enforce_file_format=False)
    assert run(tmp_path / "data", tmp_path / "out", study(), pool).quality.rows == 1


@pytest.mark.parametrize(
    "name, content, code",
    [
        ("a.zip", b"PK\3\4 rest", "archive"),
        ("a.nii.gz", b"\x1f\x8b rest", "volume"),
        ("a.gz", b"\x1f\x8b rest", "archive"),
        ("a.mhd", b"ObjectType = Image\nNDims = 3\n", "volume"),
        ("a.heic", b"\0\0\0\x18ftypheic\0\0\0\0", "phone_photo"),
        ("a.bin", b"nothing that is known", "unreadable"),
    ],
)
def test_a_format_that_is_not_read_is_named(tmp_path, name, content, code):
    (tmp_path / name).write_bytes(content)
    assert scan(tmp_path / name, study(), KEY).fault == code
