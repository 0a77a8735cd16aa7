"""Small CT files, with every tag replaceable."""

from __future__ import annotations

import io

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from wardround.sources.images.study import ImageData
from wardround_client.sources.images.folder.layout import discover
from wardround_client.sources.images.ingest import ingest

KEY = b"site key of the tests, 32 bytes."
LABELS = ("benign", "malignant")


def ct_study(**settings):
    return ImageData(**{"image_size": 24, "labels": LABELS, **settings})


def slice_hu(seed=0, size=48):
    """H x W in HU: air, a body of 45 HU with noise, and a lung of -790."""
    y, x = np.mgrid[:size, :size] / size - 0.5
    hu = np.full((size, size), -1000.0)
    hu[x**2 + y**2 < 0.17] = 45
    hu[(x + 0.12) ** 2 + y**2 < 0.02] = -790
    return np.maximum(-1020, np.rint(hu + np.random.default_rng(seed).normal(0, 12, hu.shape)))


def ct_dataset(hu, *, syntax=ExplicitVRLittleEndian, **tags):
    """A CT object of H x W or F x H x W. A tag of None is left out."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = CTImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid()
    dataset.PatientID, dataset.PatientName, dataset.Modality = "77-A", "CANARY^Name", "CT"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.5", "1.5.6"
    dataset.Rows, dataset.Columns = hu.shape[-2:]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation = 15, 0
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024
    dataset.PixelSpacing, dataset.ImageOrientationPatient = [0.9, 0.9], [1, 0, 0, 0, 1, 0]
    dataset.ImagePositionPatient = [0.0, 0.0, 0.0]
    if hu.ndim == 3:
        dataset.NumberOfFrames = len(hu)
    dataset.PixelData = np.clip(hu + 1024, 0, 65535).astype("<u2").tobytes()
    dataset["PixelData"].VR = "OW"
    for name, value in tags.items():
        if value is None:
            del dataset[name]
        else:
            setattr(dataset, name, value)
    return dataset


def ct_bytes(hu, **tags):
    content = io.BytesIO()
    ct_dataset(hu, **tags).save_as(content, enforce_file_format=True)
    return content.getvalue()


def write_ct(path, hu=None, **tags):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(ct_bytes(slice_hu() if hu is None else hu, **tags))
    return path


def write_ct_series(folder, count, *, step_mm=4.0, **tags):
    """Slices named by their order along the body."""
    return [
        write_ct(
            folder / f"{index:03d}.dcm",
            slice_hu(index) + index,
            **{"ImagePositionPatient": [0.0, 0.0, index * step_mm], "InstanceNumber": index + 1, **tags},
        )
        for index in range(count)
    ]


def ingest_ct(folder, out, pool, progress=None, **settings):
    data = ct_study(**settings)
    (source,) = discover(folder, data, 1)
    return ingest(source, data, out, KEY, workers=1, pool=pool, progress=progress)
