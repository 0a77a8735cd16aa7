"""What a file becomes once it has been looked at. Identity ends here: no field can hold a name, a UID or a tag's text.

Patients, series and instances are keyed hashes (`keyed`), checks are reason codes (`sources/quality/reasons.py`), the
rest are numbers.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from typing import Literal

import numpy as np


class UnfitImage(Exception):
    """Raised inside a worker when a file or frame cannot be used; `code` is the reason
    (`sources/quality/reasons.py`).
    """

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


@dataclass(frozen=True, kw_only=True, slots=True)
class Frame:
    """Where one frame lies in the patient (DICOM PS3.3 C.7.6.2): millimetres in the patient's system, LPS."""

    position_mm: tuple[float, float, float] | None = None  # centre of the first pixel
    orientation: tuple[float, ...] | None = None  # cosines of a row, then of a column
    spacing_mm: tuple[float, float] | None = None  # between rows, between columns


@dataclass(frozen=True, kw_only=True, slots=True)
class ScannedFile:
    """One source file after a first look at its header; its pixels are still on disk."""

    content_sha256: str
    kind: Literal["picture", "dicom"] = "picture"
    fault: str = ""  # a reason code; such a file goes no further
    pseudonym: str | None = None  # None: the file itself does not say whose it is
    patient_key: str = ""  # `keyed` PatientID, for the rows of labels.csv
    series_key: str = ""
    image_key: str = ""
    instance_number: int = 0
    rows: int = 0
    columns: int = 0
    frames: tuple[Frame, ...] = (Frame(),)


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageRequest:
    """One image to be made: which frame of which file, around which point. Files are indices into the site's list."""

    file: int
    frame: int = 0
    mark_xy: tuple[float, float] | None = None  # pixels: column, row, counted from 0 at the centre of the first pixel
    below: tuple[int, int] | None = None  # file and frame of the neighbouring slices, for channels = "slices"
    above: tuple[int, int] | None = None
    label: int = -1
    fault: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedImage:
    """One decoded, cut and scaled image, or the reason why there is none."""

    fault: str = ""
    pixels_CHW: np.ndarray | None = None  # uint8
    pixels_sha256: str = ""
    source_sha256: str = ""  # of the decoded frame before cutting, to find the same picture under two patients
    hu: bool = False


def keyed(key: bytes, kind: str, value: str) -> str:
    """Hex HMAC-SHA256 of an identifier under the site's key, so that two can be compared and none can be read."""
    return hmac.new(key, f"{kind}\0{value.strip(chr(0) + ' ')}".encode(), hashlib.sha256).hexdigest()
