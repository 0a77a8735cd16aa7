"""Writes restored images beside their source, as PNG with text or as derived DICOM.

Existing files are never overwritten. A restored image is computed. Both formats state this in their headers, with the
model, its study and its epsilon, and that the image is not for diagnostic use. The DICOM object is a Secondary Capture
(PS3.3 A.8.1) of 8 bits under the same patient and study, in a separate series with new UIDs, and it references its
source.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import IO

import numpy as np
import pydicom
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

from wardround.errors import DataError
from wardround.storage.atomic import owner_only, partial_path, settle_new
from wardround.storage.disk_errors import unwritable
from wardround.storage.text_file import path_text

NOT_FOR_DIAGNOSIS = "NOT FOR DIAGNOSTIC USE"
# Attributes of the patient and the examination: copied, so that the image is never attributed to another patient.
KEPT = (
    "SpecificCharacterSet", "PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex",
    "StudyInstanceUID", "StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName",
    "FrameOfReferenceUID", "BodyPartExamined", "PatientOrientation", "InstanceNumber",
)  # fmt: skip


class UnwritableError(DataError):
    """A result cannot be written. The message names the file, the reason and what to do."""


def write_png(path: Path, image_HW: np.ndarray, notes: Mapping[str, str]) -> None:
    """Write an 8-bit grey PNG with `notes` as text. Raises `DataError` if the file exists."""
    text = PngInfo()
    for name, value in notes.items():
        text.add_text(name, value)
    with _new(path) as file:
        Image.fromarray(image_HW, mode="L").save(file, format="PNG", pnginfo=text)


def write_derived_dicom(
    path: Path,
    image_HW: np.ndarray,
    source: Path,
    notes: Mapping[str, str],
    series_uid: str,
    scale: float,
    frame: int | None = None,
) -> None:
    """Write a derived Secondary Capture of `source`.

    Args:
        path: The file to write.
        image_HW: The restored image, grey values 0..255.
        source: The DICOM file that was restored.
        notes: Text for the derivation description.
        series_uid: The UID of the series of derived images.
        scale: The size of the new image divided by the size of the source.
        frame: Which frame of the source was restored, counted from 1; None if it has one frame.

    Raises:
        DataError: The file exists, or the source names no patient or study that the image could belong to.
    """
    original = pydicom.dcmread(source, stop_before_pixels=True, force=True)
    if "StudyInstanceUID" not in original or "PatientID" not in original:
        raise DataError(f"{source}: has no PatientID or StudyInstanceUID, which a derived image needs")
    derived = Dataset()
    for keyword in KEPT:
        if keyword in original:
            derived[keyword] = original[keyword]
    if frame is not None:
        derived.InstanceNumber = frame
    now = datetime.now()
    derived.SOPClassUID, derived.SOPInstanceUID = SecondaryCaptureImageStorage, generate_uid()
    derived.SeriesInstanceUID = series_uid
    derived.SeriesNumber = 9000 + int(original.get("SeriesNumber") or 0) % 1000
    derived.Modality = str(original.get("Modality") or "OT")
    derived.ConversionType = "WSD"
    derived.ImageType = ["DERIVED", "SECONDARY"]
    derived.SeriesDescription = f"restored by Wardround - {NOT_FOR_DIAGNOSIS}"[:64]
    derived.DerivationDescription = "; ".join(f"{name}: {value}" for name, value in notes.items())[:1024]
    derived.ImageComments = NOT_FOR_DIAGNOSIS
    derived.SoftwareVersions = notes.get("software", "wardround")[:64]
    derived.ContentDate, derived.ContentTime = now.strftime("%Y%m%d"), now.strftime("%H%M%S")
    derived.InstanceCreationDate, derived.InstanceCreationTime = derived.ContentDate, derived.ContentTime
    if "SOPInstanceUID" in original and "SOPClassUID" in original:
        reference = Dataset()
        reference.ReferencedSOPClassUID = original.SOPClassUID
        reference.ReferencedSOPInstanceUID = original.SOPInstanceUID
        if frame is not None:
            reference.ReferencedFrameNumber = frame
        derived.SourceImageSequence = [reference]
    if "PixelSpacing" in original:
        derived.PixelSpacing = [f"{float(value) / scale:.6g}" for value in original.PixelSpacing]
    derived.Rows, derived.Columns = image_HW.shape
    derived.SamplesPerPixel, derived.PhotometricInterpretation = 1, "MONOCHROME2"
    derived.BitsAllocated = derived.BitsStored = 8
    derived.HighBit, derived.PixelRepresentation = 7, 0
    derived.BurnedInAnnotation = "NO"
    pixels = image_HW.astype(np.uint8).tobytes()
    derived.PixelData = pixels + b"\0" * (len(pixels) % 2)
    derived["PixelData"].VR = "OB"
    derived.file_meta = FileMetaDataset()
    derived.file_meta.MediaStorageSOPClassUID = derived.SOPClassUID
    derived.file_meta.MediaStorageSOPInstanceUID = derived.SOPInstanceUID
    derived.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    with _new(path) as file:
        derived.save_as(file, enforce_file_format=True)


def new_series_uid() -> str:
    """Return a UID for one series of derived images."""
    return generate_uid()


@contextmanager
def _new(path: Path) -> Iterator[IO[bytes]]:
    """Yield a new file that gets the name `path` when the block has written it completely.

    Raises:
        DataError: The file exists.
        UnwritableError: The disk is full, read-only or not permitted. Nothing of the file is left.
    """
    if os.path.lexists(path):
        raise _taken(path)
    partial = partial_path(path)
    try:
        partial.unlink(missing_ok=True)  # left by an earlier call that was killed
        with open(partial, "xb", opener=owner_only) as file:
            yield file
        settle_new(partial, path)
    except FileExistsError:
        raise _taken(path) from None
    except OSError as error:
        raise UnwritableError(str(unwritable(path, error))) from None
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def _taken(path: Path) -> DataError:
    return DataError(f"{path_text(path)}: already exists and is not overwritten; choose another --out")
