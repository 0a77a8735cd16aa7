"""Write phantom hospitals as DICOM files.

Each site is a folder with CT series of phantom patients and a list of the nodules that are marked in them. The headers
contain the elements that a scanner writes (PS3.3 A.3, CT Image IOD) with invented names, so they contain no person's
data. Sites differ as real ones do: in scanner, storage of Hounsfield units, number of patients, prevalence of
malignant nodules and kinds of nodules (`profiles`).
"""

from __future__ import annotations

import csv
import datetime
import os
from collections.abc import Callable, Iterator
from concurrent.futures import as_completed
from pathlib import Path

import numpy as np
import torch
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from wardround.errors import DataError
from wardround_simulation.engine.workers import process_pool
from wardround_simulation.phantoms.cases import Kind
from wardround_simulation.phantoms.profiles import PROFILES, ScannerProfile, patients_at
from wardround_simulation.phantoms.volume import PhantomVolume, paint_volume

LABELS_FILE = "labels.csv"
LABEL_COLUMNS = ("SeriesInstanceUID", "coordX", "coordY", "coordZ", "label", "diameter_mm")
SECOND_NODULE_ONE_IN = 7
SECOND_DRAW = 10**12  # above every stream, so that the second kind is drawn independently of all first ones
PADDING_HU = -2000
OLDEST_DAY = datetime.date(2020, 1, 6)
PATIENTS_A_TASK = 5
PATIENTS_WITHOUT_WORKERS = 12  # a worker process loads torch first, which takes as long as some patients

Task = tuple[Path, int, list[int], int]  # folder, hospital, numbers of its patients, seed


def write_phantom_hospitals(
    folder: Path, sites: int, patients: int, seed: int, progress: Callable[[int, int], None] | None = None
) -> None:
    """Write `folder/hospital-1` ... with one series for each patient and a `labels.csv` each.

    `patients` is the number at a hospital of size 1; `patients_at` multiplies it by the hospital's size. The same
    arguments give the same files, byte for byte. `progress(done, total)` counts patients.

    Raises:
        DataError: If a count is below one or the folder is not empty.
    """
    if sites < 1 or patients < 1:
        raise DataError("phantom hospitals need at least one site and one patient; give larger numbers")
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise DataError(f"{folder}: not empty; phantoms are only written into a new or empty folder, so give another")
    count_of = {site: patients_at(site, patients) for site in range(1, sites + 1)}
    tasks = [
        (folder, site, list(range(first, min(first + PATIENTS_A_TASK, count + 1))), seed)
        for site, count in count_of.items()
        for first in range(1, count + 1, PATIENTS_A_TASK)
    ]
    rows: dict[int, list[tuple[int, list[str]]]] = {site: [] for site in range(1, sites + 1)}
    done = 0
    for (_, site, numbers, _), written in _written(tasks):
        rows[site] += written
        done += len(numbers)
        if progress is not None:
            progress(done, sum(count_of.values()))
    for site, found in rows.items():
        with open(folder / f"hospital-{site}" / LABELS_FILE, "w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            writer.writerow(LABEL_COLUMNS)
            writer.writerows(row for _, row in sorted(found))


def _written(tasks: list[Task]) -> Iterator[tuple[Task, list[tuple[int, list[str]]]]]:
    """Write the patients of each task, in worker processes if there are so many that starting these pays."""
    if sum(len(numbers) for _, _, numbers, _ in tasks) <= PATIENTS_WITHOUT_WORKERS:
        threads = torch.get_num_threads()
        try:
            yield from ((task, _write_patients(*task)) for task in tasks)
        finally:
            torch.set_num_threads(threads)
        return
    with process_pool(min(os.cpu_count() or 1, len(tasks))) as pool:
        jobs = {pool.submit(_write_patients, *task): task for task in tasks}
        yield from ((jobs[job], job.result()) for job in as_completed(jobs))


def _write_patients(folder: Path, site: int, numbers: list[int], seed: int) -> list[tuple[int, list[str]]]:
    """Write some patients of one site; the process then has one thread in torch.

    Returns:
        (patient number, row of labels.csv) for each of their nodules.
    """
    torch.set_num_threads(1)
    hospital = PROFILES[(site - 1) % len(PROFILES)]
    profile = hospital.scanner
    rows = []
    for number in numbers:
        stream = (seed * 1_000 + site) * 100_000 + number
        kinds: tuple[Kind, ...] = (hospital.mix.draw(hospital.mix.is_malignant(number), stream),)
        if number % SECOND_NODULE_ONE_IN == 0:
            malignant = hospital.mix.is_malignant(number // SECOND_NODULE_ONE_IN)
            kinds += (hospital.mix.draw(malignant, stream + SECOND_DRAW),)
        volume = paint_volume(profile.site, kinds, stream)
        series_uid = generate_uid(entropy_srcs=["wardround phantom series", str(stream)])
        origin_mm = (-90.0 + (number % 9) * 20, -20.0, -150.0 + (number % 7) * 25)
        where = folder / f"hospital-{site}" / f"patient-{number:04d}"
        where.mkdir(parents=True, exist_ok=True)
        _write_series(where, profile, volume, site, number, stream, series_uid, origin_mm)
        for nodule in volume.nodules:
            point = (origin_mm[0] + nodule.x_mm, origin_mm[1] + nodule.y_mm, origin_mm[2] + nodule.z_mm)
            label = "malignant" if nodule.malignant else "benign"
            place = [f"{value:.3f}" for value in point]
            rows.append((number, [series_uid, *place, label, f"{nodule.diameter_mm:.1f}"]))
    return rows


def _write_series(
    where: Path,
    profile: ScannerProfile,
    volume: PhantomVolume,
    site: int,
    number: int,
    stream: int,
    series_uid: str,
    origin_mm: tuple[float, float, float],
) -> None:
    """Write one patient's slices as files. `origin_mm` is the middle of the stack in the patient's coordinates."""
    header = _series_header(profile, volume, site, number, stream, series_uid)
    stored_SHW = _stored_values(profile, volume.hu_SHW.numpy())
    slices, rows, columns = stored_SHW.shape
    for index in range(slices):
        height_mm = (index - (slices - 1) / 2) * volume.thickness_mm
        position = slices - 1 - index if profile.feet_first else index
        corner_mm = (
            origin_mm[0] - (columns - 1) / 2 * volume.spacing_mm,
            origin_mm[1] - (rows - 1) / 2 * volume.spacing_mm,
            origin_mm[2] + height_mm,
        )
        uid = generate_uid(entropy_srcs=["wardround phantom slice", str(stream), str(index)])
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = CTImageStorage
        meta.MediaStorageSOPInstanceUID = uid
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        path = where / f"IM{position + 1:04d}.dcm"
        image = FileDataset(str(path), header, file_meta=meta, preamble=b"\0" * 128)
        image.SOPInstanceUID = uid
        image.InstanceNumber = position + 1
        image.ImagePositionPatient = [f"{value:.4f}" for value in corner_mm]
        image.SliceLocation = f"{corner_mm[2]:.4f}"
        image.PixelData = stored_SHW[index].tobytes()
        image.save_as(path, enforce_file_format=True)


def _stored_values(profile: ScannerProfile, hu_SHW: np.ndarray) -> np.ndarray:
    """Return Hounsfield units as this scanner stores them, in 16 bits.

    If the scanner has a round field of view, the values outside it are padding.
    """
    hu_SHW = np.clip(np.round(hu_SHW), -1024, 3071)
    if profile.round_field:
        steps = np.linspace(-1, 1, hu_SHW.shape[1])
        hu_SHW = np.where((steps[:, None] ** 2 + steps[None] ** 2 > 1)[None], PADDING_HU, hu_SHW)
    return (hu_SHW - profile.intercept).astype("<i2" if profile.signed else "<u2")


def _series_header(
    profile: ScannerProfile, volume: PhantomVolume, site: int, number: int, stream: int, series_uid: str
) -> Dataset:
    """Return a data set with the elements that all slices of a series share."""
    day = (OLDEST_DAY + datetime.timedelta(days=stream % 1500)).strftime("%Y%m%d")
    header = Dataset()
    header.SpecificCharacterSet = "ISO_IR 192"
    header.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    header.SOPClassUID = CTImageStorage
    header.StudyDate = header.SeriesDate = header.AcquisitionDate = header.ContentDate = day
    header.StudyTime = header.SeriesTime = header.ContentTime = f"{8 + number % 9:02d}{number % 60:02d}00"
    header.AccessionNumber = f"P{site:02d}{number:05d}"
    header.Modality = "CT"
    header.Manufacturer = profile.manufacturer
    header.ManufacturerModelName = profile.model
    header.InstitutionName = f"Phantom Hospital {site}"
    header.ReferringPhysicianName = ""
    header.StudyDescription = "Phantom chest"
    header.SeriesDescription = f"Axial {volume.thickness_mm:g} mm {profile.kernel}"
    header.PatientName = f"PHANTOM^SITE {site}^{number:04d}"
    header.PatientID = f"PHANTOM-{site}-{number:04d}"
    header.PatientBirthDate = f"{1935 + number % 45}0101"
    header.PatientSex = "F" if number // 2 % 2 else "M"  # independent of the label, which alternates
    header.BodyPartExamined = "CHEST"
    header.SliceThickness = f"{volume.thickness_mm:g}"
    header.SpacingBetweenSlices = f"{volume.thickness_mm:g}"
    header.KVP = str(profile.tube_voltage_kv)
    header.XRayTubeCurrent = str(profile.tube_current_ma)
    header.ConvolutionKernel = profile.kernel
    header.PatientPosition = "HFS"
    header.StudyInstanceUID = generate_uid(entropy_srcs=["wardround phantom study", str(stream)])
    header.SeriesInstanceUID = series_uid
    header.FrameOfReferenceUID = generate_uid(entropy_srcs=["wardround phantom frame", str(stream)])
    header.StudyID = str(number)
    header.SeriesNumber = "2"
    header.AcquisitionNumber = "1"
    header.PositionReferenceIndicator = ""
    header.ImageOrientationPatient = ["1", "0", "0", "0", "1", "0"]
    header.SamplesPerPixel = 1
    header.PhotometricInterpretation = "MONOCHROME2"
    header.Rows, header.Columns = volume.hu_SHW.shape[1:]
    header.PixelSpacing = [f"{volume.spacing_mm:.6f}", f"{volume.spacing_mm:.6f}"]
    header.BitsAllocated, header.BitsStored, header.HighBit = 16, 16, 15
    header.PixelRepresentation = int(profile.signed)
    if profile.round_field:
        header.PixelPaddingValue = PADDING_HU - profile.intercept
    header.WindowCenter, header.WindowWidth = "-600", "1500"
    header.RescaleIntercept, header.RescaleSlope, header.RescaleType = str(profile.intercept), "1", "HU"
    return header
