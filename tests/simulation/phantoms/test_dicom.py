"""The phantom hospitals: valid CT series, marks inside nodules, differences between sites, and reproducible bytes."""

from __future__ import annotations

import csv
import hashlib

import numpy as np
import pydicom
import pytest
from pydicom.uid import CTImageStorage

from wardround.errors import DataError
from wardround_simulation.phantoms.cases import CARCINOMA
from wardround_simulation.phantoms.dicom import LABEL_COLUMNS, write_phantom_hospitals
from wardround_simulation.phantoms.profiles import PROFILES, patients_at
from wardround_simulation.phantoms.volume import SLICE_PX, paint_volume

SITES, PATIENTS = 3, 7
ALL_PATIENTS = sum(patients_at(site, PATIENTS) for site in range(1, SITES + 1))


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantoms")
    seen = []
    write_phantom_hospitals(folder, SITES, PATIENTS, seed=5, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (ALL_PATIENTS, ALL_PATIENTS)
    return folder


def series_of(site_folder):
    found = {}
    for path in sorted(site_folder.rglob("*.dcm")):
        image = pydicom.dcmread(path)
        found.setdefault(image.SeriesInstanceUID, []).append(image)
    return {uid: sorted(images, key=lambda i: float(i.ImagePositionPatient[2])) for uid, images in found.items()}


def hounsfield(image):
    return image.pixel_array * float(image.RescaleSlope) + float(image.RescaleIntercept)


def rows_of(site_folder):
    with open(site_folder / "labels.csv", newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize("site", range(1, SITES + 1))
def test_every_series_is_an_evenly_spaced_axial_chest_ct(hospitals, site):
    series = series_of(hospitals / f"hospital-{site}")
    assert len(series) == patients_at(site, PATIENTS)
    for images in series.values():
        assert len({i.PatientID for i in images}) == len({i.FrameOfReferenceUID for i in images}) == 1
        assert len({i.SOPInstanceUID for i in images}) == len({i.InstanceNumber for i in images}) == len(images)
        heights = np.array([float(i.ImagePositionPatient[2]) for i in images])
        assert np.allclose(np.diff(heights), float(images[0].SliceThickness))
        for image in images:
            assert image.SOPClassUID == CTImageStorage
            assert (image.Rows, image.Columns) == image.pixel_array.shape == (SLICE_PX, SLICE_PX)
            assert image.PhotometricInterpretation == "MONOCHROME2" and image.BodyPartExamined == "CHEST"
            assert list(image.ImageOrientationPatient) == [1, 0, 0, 0, 1, 0]
            assert str(image.PatientName).startswith("PHANTOM^")
            hu = hounsfield(image)
            assert hu.min() >= -2000 and hu.max() <= 3071
            assert 0.1 < ((hu > -950) & (hu < -700)).mean() < 0.8  # there is lung, and not only lung


@pytest.mark.parametrize("site", range(1, SITES + 1))
def test_every_mark_lies_inside_the_pictures_of_its_series_and_both_classes_occur(hospitals, site):
    series, rows = series_of(hospitals / f"hospital-{site}"), rows_of(hospitals / f"hospital-{site}")
    assert tuple(rows[0]) == LABEL_COLUMNS
    assert {row["label"] for row in rows} == {"benign", "malignant"}
    assert {row["SeriesInstanceUID"] for row in rows} == set(series)
    for row in rows:
        images = series[row["SeriesInstanceUID"]]
        x, y, z = (float(row[name]) for name in ("coordX", "coordY", "coordZ"))
        near = min(images, key=lambda i: abs(float(i.ImagePositionPatient[2]) - z))
        assert abs(float(near.ImagePositionPatient[2]) - z) <= float(near.SliceThickness)
        right = (x - float(near.ImagePositionPatient[0])) / float(near.PixelSpacing[1])
        down = (y - float(near.ImagePositionPatient[1])) / float(near.PixelSpacing[0])
        assert 20 < right < SLICE_PX - 20 and 20 < down < SLICE_PX - 20


def test_a_marked_solid_nodule_is_denser_than_lung_at_its_mark():
    solid = []
    for seed in range(7):
        volume = paint_volume(PROFILES[0].scanner.site, (CARCINOMA,), seed)
        mark = volume.nodules[0]
        row, column = (round(at / volume.spacing_mm + (SLICE_PX - 1) / 2) for at in (mark.y_mm, mark.x_mm))
        middle = round(mark.z_mm / volume.thickness_mm + (volume.hu_SHW.shape[0] - 1) / 2)
        solid.append(float(volume.hu_SHW[middle, row - 1 : row + 2, column - 1 : column + 2].mean()))
    assert np.median(solid) > -300


def test_sites_differ_in_spacing_noise_and_stored_values(hospitals):
    spacings, thicknesses, noises, intercepts = [], [], [], []
    for site in range(1, SITES + 1):
        images = [stack[0] for stack in series_of(hospitals / f"hospital-{site}").values()]
        spacings.append(np.mean([float(i.PixelSpacing[0]) for i in images]))
        thicknesses.append(float(images[0].SliceThickness))
        intercepts.append(float(images[0].RescaleIntercept))
        noises.append(np.median([np.abs(np.diff(hounsfield(i)[60:200, 60:200], axis=1)).mean() for i in images]))
    assert len(set(thicknesses)) == SITES and len(set(intercepts)) > 1
    assert np.ptp(spacings) > 0.05 and max(noises) > 2 * min(noises)


@pytest.mark.slow
def test_the_same_seed_writes_the_same_bytes(hospitals, tmp_path):
    write_phantom_hospitals(tmp_path / "again", 1, PATIENTS, seed=5)  # here without worker processes

    def digests(folder):
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}

    again = digests(tmp_path / "again" / "hospital-1")
    assert len(again) > PATIENTS and again == digests(hospitals / "hospital-1")


def test_no_patient_or_image_is_in_two_hospitals(hospitals):
    patients, slices = [], []
    for site in range(1, SITES + 1):
        stacks = series_of(hospitals / f"hospital-{site}").values()
        patients += [stack[0].PatientID for stack in stacks]
        slices += [image.PixelData for stack in stacks for image in stack]
    assert len(set(patients)) == ALL_PATIENTS
    assert len(set(slices)) == len(slices)


def test_a_folder_with_files_or_no_patients_is_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("kept")
    with pytest.raises(DataError, match="not empty"):
        write_phantom_hospitals(tmp_path, 1, 1, seed=1)
    assert (tmp_path / "mine.txt").read_text() == "kept"
    with pytest.raises(DataError, match="at least one"):
        write_phantom_hospitals(tmp_path / "new", 1, 0, seed=1)
