"""Uncompressed grey pixels: where they are in a file and how they are scaled, found once with the header.

A frame of such a file is read from its place, without parsing the file again and without reading its other frames.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from wardround_client.sources.images.decoding.frame_attributes import first_value

ATTRIBUTES = (
    *("BitsStored", "PixelRepresentation", "PixelPaddingValue", "PixelPaddingRangeLimit", "RescaleSlope"),
    *("RescaleIntercept", "RescaleType", "WindowCenter", "WindowWidth", "ModalityLUTSequence", "VOILUTSequence"),
)
DECODED_WITH_HELP = (  # tables, and scaling that differs from frame to frame
    *("ModalityLUTSequence", "VOILUTSequence", "PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Scaling:
    """How stored grey values become Hounsfield units or grey, without a table."""

    padding: tuple[int, int] | None = None  # stored values from, to: not part of the image
    slope: float | None = None  # None: no rescale
    intercept: float = 0.0
    hu: bool = False  # rescaled values are Hounsfield units
    centre: float | None = None  # of the window; None: no window
    width: float | None = None
    inverted: bool = False  # MONOCHROME1


@dataclass(frozen=True, kw_only=True, slots=True)
class NativePixels:
    """The frames of one file: each is `rows` x `columns` values of `dtype`, one after the other from byte `offset`."""

    offset: int
    rows: int
    columns: int
    dtype: str
    scaling: Scaling

    def read(self, path: Path, frame: int) -> np.ndarray:
        """Return the stored values of one frame (counted from 0), H x W.

        Raises:
            OSError: The file cannot be read.
            ValueError: The file is shorter than when it was scanned.
        """
        count = self.rows * self.columns
        with open(path, "rb") as file:
            file.seek(self.offset + frame * count * np.dtype(self.dtype).itemsize)
            return np.fromfile(file, self.dtype, count).reshape(self.rows, self.columns)


def native_pixels(header: Dataset, offset: int, length: int) -> NativePixels | None:
    """Return the place and scaling of a file's pixels, or None if pydicom has to decode them.

    `offset` and `length` are those of the value of PixelData, in bytes.
    """
    if header.file_meta.get("TransferSyntaxUID") not in (ImplicitVRLittleEndian, ExplicitVRLittleEndian):
        return None
    if any(name in header for name in DECODED_WITH_HELP):
        return None
    bits, signed, stored = (header.get(name) for name in ("BitsAllocated", "PixelRepresentation", "BitsStored"))
    rows, columns, photometric = (header.get(name) for name in ("Rows", "Columns", "PhotometricInterpretation"))
    if header.get("SamplesPerPixel") != 1 or photometric not in ("MONOCHROME1", "MONOCHROME2"):
        return None
    try:
        if bits not in (8, 16) or signed not in (0, 1) or not 1 <= stored <= bits:
            return None
        expected = rows * columns * (bits // 8) * int(header.get("NumberOfFrames") or 1)
        if length != expected + expected % 2:
            return None
        scaling = scaling_of(header, [header], bits)
    except (TypeError, ValueError, OverflowError):
        return None  # several values in one of the fields, for example
    numbers = (scaling.slope, scaling.intercept, scaling.centre, scaling.width)
    if any(number is not None and not math.isfinite(number) for number in numbers):
        return None
    dtype = f"{'<' if bits == 16 else '|'}{'i' if signed else 'u'}{bits // 8}"
    return NativePixels(offset=offset, rows=rows, columns=columns, dtype=dtype, scaling=scaling)


def scaling_of(dataset: Dataset, scopes: list[Dataset], bits: int | None) -> Scaling:
    """Return the scaling of a frame without a modality table, from the nearest scope that states it (PS3.3 C.11.1).

    `bits` is the size of a stored value, or None if the pixels are no integers and have no padding.
    """
    slope, intercept = first_value(scopes, "RescaleSlope"), first_value(scopes, "RescaleIntercept")
    rescaled = slope is not None and intercept is not None
    unit = str(first_value(scopes, "RescaleType") or "HU").strip()
    return Scaling(
        padding=None if bits is None else _padding(dataset, bits),
        slope=float(slope) if rescaled else None,
        intercept=float(intercept) if rescaled else 0.0,
        hu=rescaled and str(dataset.get("Modality") or "") == "CT" and unit == "HU",
        centre=_first(first_value(scopes, "WindowCenter")),
        width=_first(first_value(scopes, "WindowWidth")),
        inverted=dataset.get("PhotometricInterpretation") == "MONOCHROME1",
    )


def _padding(dataset: Dataset, bits: int) -> tuple[int, int] | None:
    """Return the range of Pixel Padding Values (PS3.3 C.7.5.1.1.2) as stored values, or None without one."""
    value, limit = dataset.get("PixelPaddingValue"), dataset.get("PixelPaddingRangeLimit")
    if value is None:
        return None
    signed = int(dataset.get("PixelRepresentation") or 0) == 1
    ends = [_as_stored(int(end), bits, signed) for end in (value, limit) if end is not None]
    return min(ends), max(ends)


def _as_stored(value: int, bits: int, signed: bool) -> int:
    """Correct the sign of a padding value to that of the pixels (the tag's VR is ambiguous)."""
    value &= (1 << bits) - 1
    return value - (1 << bits) if signed and value >= 1 << (bits - 1) else value


def _first(value: Any) -> float | None:
    if value is None:
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return float(value[0])
