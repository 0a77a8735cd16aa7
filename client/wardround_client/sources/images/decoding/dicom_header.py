"""Scans a DICOM file: its header becomes a `ScannedFile`, which identifies no one.

This module decodes no pixels (`dicom_pixels.py` does). Tag values are compared, hashed or converted to numbers; none is
kept as text, and none is quoted in an error.
"""

from __future__ import annotations

import functools
import logging
import math
import os
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pydicom
from pydicom import Dataset
from pydicom.filereader import read_partial
from pydicom.tag import BaseTag, Tag
from pydicom.uid import UID

from wardround.sources.images.study import ImageData
from wardround_client.sources.cohort import pseudonym
from wardround_client.sources.images.attributes import Attributes, age_of, scanner_of, sex_of, thickness_of
from wardround_client.sources.images.decoding.frame_attributes import first_value, frame_scopes
from wardround_client.sources.images.decoding.native import ATTRIBUTES, NativePixels, native_pixels
from wardround_client.sources.images.stages import Frame, ScannedFile, UnfitImage
from wardround_client.sources.keyed import keyed

MAX_FRAMES = 20_000
MAX_FRAME_PIXELS = 200_000_000
AXIAL_COSINE = 0.8  # least cosine between a slice's normal and the long axis (a gantry tilts up to 30 degrees)
AXIAL_MODALITIES = frozenset({"CT", "PT"})
DERIVED_MODALITIES = frozenset({"SEG", "RTSTRUCT", "RTDOSE", "RTPLAN"})
FLOAT_PIXEL_DATA, PIXEL_DATA = 0x7FE00008, 0x7FE00010  # the first tag of pixels (of three), and the usual one
USED = (
    "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "InstanceNumber", "PatientID", "IssuerOfPatientID",
    "PatientSpeciesDescription", "PatientSpeciesCodeSequence", "PatientBreedDescription", "PatientBreedCodeSequence",
    "Modality", "BodyPartExamined", "BurnedInAnnotation", "ImageType", "NumberOfFrames", "Rows", "Columns",
    "SamplesPerPixel", "BitsAllocated", "PhotometricInterpretation", "ImagePositionPatient", "ImageOrientationPatient",
    "PatientSex", "PatientAge", "PatientBirthDate", "StudyDate", "Manufacturer", "SliceThickness",
    "PixelSpacing", "ImagerPixelSpacing", "PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence",
)  # fmt: skip
READ_TAGS: list[BaseTag | int] = [Tag(name) for name in (*USED, *ATTRIBUTES)]
DESCRIBED = tuple(
    Tag(name)
    for name in ("PatientSex", "PatientAge", "PatientBirthDate", "StudyDate", "Manufacturer", "SliceThickness")
)
IMAGE_ATTRIBUTES = ("Rows", "Columns", "BitsAllocated", "PhotometricInterpretation")
HUMAN_NAMES = frozenset({"human", "homo sapiens", "homo sapiens sapiens", "h. sapiens", "man", "mensch", "humain"})
HUMAN_CODES = frozenset({"337915000", "L-85B00"})  # homo sapiens in SNOMED CT and in SNOMED RT
SECONDARY_CAPTURE = UID("1.2.840.10008.5.1.4.1.1.7")

# Real headers often violate the standard; pydicom would quote the offending value in a warning.
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
logging.getLogger("pydicom").addHandler(logging.NullHandler())
logging.getLogger("pydicom").propagate = False


def read_patient(path: Path) -> tuple[str | None, str]:
    """Return PatientID and IssuerOfPatientID of a file; (None, "") if it has no PatientID or is not DICOM."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            header = pydicom.dcmread(path, force=True, specific_tags=["PatientID", "IssuerOfPatientID"])
            return _patient(header)
    except (OSError, MemoryError) as error:
        if isinstance(error, OSError) and error.errno is None:
            return None, ""
        raise
    except Exception:  # not DICOM, or damaged: ingest reports which
        return None, ""


def scan_dicom(path: Path | BinaryIO, content_sha256: str, data: ImageData, key: bytes) -> ScannedFile:
    """Return the record of one file: keyed hashes, geometry, and the first reason why it does not fit the study.

    Args:
        path: The file, or its content opened for reading.

    Raises:
        UnfitImage: "unreadable", for a file that is not DICOM.
        OSError, MemoryError: The file cannot be read at the moment.
        Exception: pydicom's own error for a damaged header.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if isinstance(path, Path):
            with open(path, "rb") as file:
                header, native = _read_header(file)
        else:
            header, native = _read_header(path)
        return replace(_record(header, content_sha256, data, key), native=native)


def _read_header(file: BinaryIO) -> tuple[Dataset, NativePixels | None]:
    """Return the attributes in `READ_TAGS`, and where the pixels are unless they need a decoder."""
    pixels: list[tuple[str | None, int]] = []

    def at_pixels(tag: BaseTag, vr: str | None, length: int) -> bool:
        number = int(tag)  # a comparison of pydicom's tags takes ten times as long
        if number == PIXEL_DATA:
            pixels.append((vr, length))
        return FLOAT_PIXEL_DATA <= number <= PIXEL_DATA

    try:
        header = read_partial(file, stop_when=at_pixels, force=True, specific_tags=READ_TAGS)
    except MemoryError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise UnfitImage("unreadable") from None
    # With `force`, pydicom parses any bytes; only a DICOM object has a SOP class, or an image's attributes.
    has_class = "SOPClassUID" in header or bool(header.file_meta.get("MediaStorageSOPClassUID"))
    if not has_class and not all(name in header for name in IMAGE_ATTRIBUTES):
        raise UnfitImage("unreadable")
    if not pixels:
        return header, None
    vr, length = pixels[0]
    offset = file.tell() + (8 if vr is None else 12)  # pydicom stops before the element's tag, VR and length
    whole = offset + length <= file.seek(0, os.SEEK_END)
    return header, native_pixels(header, offset, length) if whole and vr in (None, "OB", "OW") else None


def _record(header: Dataset, content_sha256: str, data: ImageData, key: bytes) -> ScannedFile:
    patient_id, issuer = _patient(header)
    fault = _fault(header, data)
    frames = (Frame(),) if fault in ("no_pixels", "too_large") else _frames(header)
    if not fault and str(header.get("Modality", "")) in AXIAL_MODALITIES:
        frames = tuple(frame if _is_axial(frame) else replace(frame, fault="not_axial") for frame in frames)
        fault = "not_axial" if all(frame.fault for frame in frames) else ""
    return ScannedFile(
        content_sha256=content_sha256,
        kind="dicom",
        fault=fault,
        pseudonym=None if patient_id is None else pseudonym(key, patient_id),
        issuer_key=keyed(key, "issuer", issuer) if issuer else "",
        former_pseudonym=pseudonym(key, patient_id, issuer) if patient_id is not None and issuer else None,
        patient_key="" if patient_id is None else keyed(key, "patient", patient_id),
        series_key=keyed(key, "series", str(header.get("SeriesInstanceUID", ""))),
        image_key=keyed(key, "image", str(header.get("SOPInstanceUID", ""))),
        instance_number=int((_numbers([header.get("InstanceNumber")], 1) or (0,))[0]),
        rows=int(header.get("Rows") or 0),
        columns=int(header.get("Columns") or 0),
        frames=frames,
        attributes=_attributes(header),
    )


def _attributes(header: Dataset) -> Attributes:
    """Return the bands of sex, age, scanner and slice thickness. The values themselves are dropped."""
    *examined, thickness = (_text(header, tag) for tag in DESCRIBED)
    if not thickness:  # an enhanced object has it in its functional groups
        thickness = str(first_value(frame_scopes(header, 0), "SliceThickness") or "")
    return _bands(*examined, thickness)


@functools.lru_cache(maxsize=1)  # the files of a series follow each other, and nothing of an earlier one is kept
def _bands(sex: str, age: str, born: str, examined: str, manufacturer: str, thickness: str) -> Attributes:
    return Attributes(
        sex=sex_of(sex),
        age=age_of(age, born, examined),
        scanner=scanner_of(manufacturer),
        slice_thickness=thickness_of(thickness),
    )


def _text(header: Dataset, tag: BaseTag) -> str:
    """Return the text of an element without pydicom's conversion, which takes longer than the rest; "" without one."""
    if tag not in header:
        return ""
    value = header.get_item(tag).value
    return value.decode("latin-1") if isinstance(value, bytes) else str(value or "")


def _patient(header: Dataset) -> tuple[str | None, str]:
    """Return PatientID and its issuer. Raises `UnfitImage` if the field holds several IDs, as a backslash separates."""
    value = header.get("PatientID") or ""
    if not isinstance(value, str) and len({str(one).strip(" \0") for one in value}) > 1:
        raise UnfitImage("several_patients")
    text = str(value if isinstance(value, str) else value[0]).strip(" \0")
    return (text, str(header.get("IssuerOfPatientID") or "").strip(" \0")) if text else (None, "")


def _fault(header: Dataset, data: ImageData) -> str:
    """Return the first reason code that excludes the file, or ""."""
    rows, columns = header.get("Rows"), header.get("Columns")
    if not rows or not columns or not header.get("BitsAllocated"):
        return "no_pixels"
    frames = _frame_count(header)
    if frames < 1:
        return "no_pixels"
    if frames > MAX_FRAMES or int(rows) * int(columns) * int(header.get("SamplesPerPixel") or 1) > MAX_FRAME_PIXELS:
        return "too_large"
    if not _is_human(header):
        return "not_human"
    modality = str(header.get("Modality") or "")
    if int(header.BitsAllocated) == 1 or modality in DERIVED_MODALITIES:
        return "not_an_image"
    if data.modality != "any" and modality != data.modality:
        return "wrong_modality"
    if data.modality != "any" and str(header.get("SOPClassUID", "")).startswith(SECONDARY_CAPTURE):
        return "screenshot"
    if "LOCALIZER" in _words(header.get("ImageType")):
        return "localizer"
    body_part = str(header.get("BodyPartExamined") or "").strip().casefold()
    if data.body_part and body_part and body_part != data.body_part.casefold():
        return "wrong_body_part"
    if str(header.get("BurnedInAnnotation") or "").strip().upper() == "YES":
        return "burned_in"
    return ""


def _frame_count(header: Dataset) -> int:
    """Return NumberOfFrames, 1 if it is absent; a single number that is 0 counts as absent, as in pydicom."""
    return int(header.get("NumberOfFrames") or 1)


def _is_human(header: Dataset) -> bool:
    """Whether nothing in the header names a species or a breed of animals (PS3.3 C.7.1.1)."""
    name = str(header.get("PatientSpeciesDescription") or "").strip(" \0").casefold()
    codes = [str(item.get("CodeValue") or "").strip() for item in header.get("PatientSpeciesCodeSequence") or ()]
    if name and name not in HUMAN_NAMES and not name.startswith(("homo sapiens", "human")):
        return False
    if any(code and code not in HUMAN_CODES for code in codes):
        return False
    return not header.get("PatientBreedDescription") and not header.get("PatientBreedCodeSequence")


def _words(value: Any) -> list[str]:
    return [value.upper()] if isinstance(value, str) else [str(word).upper() for word in value or ()]


def _frames(header: Dataset) -> tuple[Frame, ...]:
    """Return the geometry of each frame, from its functional groups if the object is enhanced (PS3.3 C.7.6.16)."""
    count = max(1, _frame_count(header))
    return tuple(_frame(frame_scopes(header, index)) for index in range(count))


def _frame(scopes: list[Dataset]) -> Frame:
    position = _numbers(first_value(scopes, "ImagePositionPatient"), 3)
    orientation = _numbers(first_value(scopes, "ImageOrientationPatient"), 6)
    spacing = _numbers(first_value(scopes, "PixelSpacing"), 2)
    if spacing is None:  # projection radiographs give the spacing at the detector
        spacing = _numbers(first_value(scopes, "ImagerPixelSpacing"), 2)
    if spacing is not None and min(spacing) <= 0:
        spacing = None
    if orientation is not None and np.linalg.norm(normal(orientation)) < 0.5:
        orientation = None
    return Frame(position_mm=position, orientation=orientation, spacing_mm=spacing)


def _numbers(value: Any, count: int) -> Any:
    """Return `count` finite floats, or None."""
    try:
        numbers = tuple(float(item) for item in value)
    except (TypeError, ValueError):
        return None
    return numbers if len(numbers) == count and all(math.isfinite(number) for number in numbers) else None


def normal(orientation: tuple[float, ...]) -> np.ndarray:
    """Return the normal of a slice: the cross product of its row cosines and column cosines."""
    a, b, c, x, y, z = orientation  # `np.cross` takes fifty times as long for one pair
    return np.array([b * z - c * y, c * x - a * z, a * y - b * x])


def _is_axial(frame: Frame) -> bool:
    """Whether the frame is axial; also true if its orientation is not stated."""
    return frame.orientation is None or abs(float(normal(frame.orientation)[2])) >= AXIAL_COSINE
