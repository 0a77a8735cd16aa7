"""The header of a DICOM source in the form in which results repeat it: complete, and in UTF-8.

Results repeat whose examination a source is. Sources are in many character sets, and a study's labels in any language,
so everything is converted to UTF-8. Attributes that a result must have but may leave empty are added where they are
missing.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import pydicom
from pydicom import Dataset

UTF_8 = "ISO_IR 192"
NEEDED = ("PatientID", "StudyInstanceUID", "SOPInstanceUID", "SOPClassUID")
MAY_BE_EMPTY = (  # of type 2 in the modules Patient and General Study (PS3.3 C.7.1.1 and C.7.2.1)
    *("PatientName", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID", "AccessionNumber"),
    "ReferringPhysicianName",
)


def source_header(path: Path) -> Dataset | None:
    """Return the header of a file, or None if it does not identify an examination or cannot be converted."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            header = pydicom.dcmread(path, stop_before_pixels=True, force=True)
            if not all(header.get(name) for name in NEEDED):
                return None
            header.decode()
    except Exception:  # of a damaged header, or an unknown character set
        return None
    header.SpecificCharacterSet = UTF_8
    for name in MAY_BE_EMPTY:
        if name not in header:
            setattr(header, name, "")
    return header
