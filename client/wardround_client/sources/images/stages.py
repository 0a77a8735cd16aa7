"""What the stages of ingestion hand on: a file as scanned, an image as asked for, an image as prepared.

Identity ends here: no field can hold a name, a UID or a tag's text. Patients, series and instances are keyed hashes
(`sources/keyed.py`), checks are reason codes (`quality/reasons.py` beside this file), sex, age and scanner are bands of
a fixed vocabulary (`attributes.py`), and everything else is a number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from wardround_client.sources.images.attributes import Attributes

if TYPE_CHECKING:
    from wardround_client.sources.images.decoding.native import NativePixels


class UnfitImage(Exception):
    """A file or frame cannot be used; raised inside a worker.

    `code` is the reason (`sources/images/quality/reasons.py`).
    """

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


@dataclass(frozen=True, kw_only=True, slots=True)
class Frame:
    """The position of one frame in the patient (DICOM PS3.3 C.7.6.2), in millimetres of the patient's system, LPS."""

    position_mm: tuple[float, float, float] | None = None  # centre of the first pixel
    orientation: tuple[float, ...] | None = None  # cosines of a row, then of a column
    spacing_mm: tuple[float, float] | None = None  # between rows, between columns
    fault: str = ""  # a reason code of this frame alone


@dataclass(frozen=True, kw_only=True, slots=True)
class ScannedFile:
    """One source file after a scan of its header; its pixels have not been read."""

    content_sha256: str
    kind: Literal["picture", "dicom"] = "picture"
    fault: str = ""  # a reason code; a file with a fault is not processed any further
    pseudonym: str | None = None  # None: the file itself names no patient
    issuer_key: str = ""  # `keyed` IssuerOfPatientID, to notice one PatientID with several issuers
    former_pseudonym: str | None = None  # as given by versions in which the issuer was part of a patient's identity
    patient_key: str = ""  # `keyed` PatientID, for the rows of labels.csv
    series_key: str = ""
    image_key: str = ""
    instance_number: int = 0
    rows: int = 0
    columns: int = 0
    frames: tuple[Frame, ...] = (Frame(),)
    attributes: Attributes = Attributes()  # coarse bands of a fixed vocabulary
    native: NativePixels | None = None  # uncompressed grey pixels that need no decoder


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageRequest:
    """One image to be made: the frame of a file, and the point around which to cut.

    Files are indices into the site's list of files.
    """

    file: int
    frame: int = 0
    mark_xy: tuple[float, float] | None = None  # pixels: column, row, counted from 0 at the centre of the first pixel
    below: tuple[int, int] | None = None  # file and frame of the neighbouring slices, for channels = "slices"
    above: tuple[int, int] | None = None
    label: int = -1
    fault: str = ""
    table_row: int | None = None  # the row of labels.csv whose point this is
    lesion_size: str = ""  # a band of `attributes.LESIONS`


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedImage:
    """One decoded, cut and scaled image, or the reason why it could not be made."""

    fault: str = ""
    pixels_CHW: np.ndarray | None = None  # uint8
    pixels_sha256: str = ""
    source_sha256: str = ""  # of the decoded frame before cutting, to find the same picture under two patients
    hu: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One entry of the quality report. `file` is an index into the site's files; None means the site as a whole."""

    code: str
    file: int | None = None
    place: str = ""
    count: int = 1
