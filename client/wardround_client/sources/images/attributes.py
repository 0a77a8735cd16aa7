"""What a cohort keeps about a patient and a scanner, so that a model can be tested by group: coarse bands only.

Identity ends at this type. Each attribute has a short list of possible values; a header's text, a date, an age in years
or a size in mm is compared with the list and dropped. "" means that the source does not give the attribute. The values
are columns of the cohort's table, which never leaves the site, and nothing trains on them.
"""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields

from wardround_client.sources.bands import AGES, SEXES, age_band

MOST_YEARS = 120
OTHER = "other"
# Words by which a manufacturer is recognised at the start of DICOM Manufacturer, and its name here. The last four are
# invented: the scanners of the phantom hospitals.
MANUFACTURERS = {
    "agfa": "Agfa", "canon": "Canon", "toshiba": "Canon", "carestream": "Carestream", "fuji": "Fujifilm",
    "ge ": "GE", "general electric": "GE", "hitachi": "Hitachi", "hologic": "Hologic", "konica": "Konica Minolta",
    "neusoft": "Neusoft", "philips": "Philips", "samsung": "Samsung", "shimadzu": "Shimadzu", "siemens": "Siemens",
    "united imaging": "United Imaging", "uih": "United Imaging",
    "aurora imaging": "Aurora (phantom)", "boreal medical": "Boreal (phantom)", "cascade systems": "Cascade (phantom)",
    "delta diagnostics": "Delta (phantom)",
}  # fmt: skip
SCANNERS = (*dict.fromkeys(MANUFACTURERS.values()), OTHER)
THICKNESS_LIMITS_MM = (1.5, 2.5, 5.0)  # thin-section CT, the usual reconstruction, thick slices
LESION_LIMITS_MM = (6.0, 8.0, 15.0)  # the first two are those of the Fleischner guideline for nodules (2017)


def band_names(limits_mm: tuple[float, ...]) -> tuple[str, ...]:
    """Return the names of the bands between ascending limits, in mm."""
    inner = [f"{low:g} to {high:g} mm" for low, high in zip(limits_mm, limits_mm[1:], strict=False)]
    return (f"under {limits_mm[0]:g} mm", *inner, f"{limits_mm[-1]:g} mm or more")


THICKNESSES, LESIONS = band_names(THICKNESS_LIMITS_MM), band_names(LESION_LIMITS_MM)
# Column of the cohort's table -> its possible values, in the order in which tables show them.
VALUES: Mapping[str, tuple[str, ...]] = {
    "sex": SEXES,
    "age": AGES,
    "scanner": SCANNERS,
    "slice_thickness": THICKNESSES,
    "lesion_size": LESIONS,
}
TITLES = {
    "sex": "sex",
    "age": "age in years",
    "scanner": "scanner",
    "slice_thickness": "slice thickness",
    "lesion_size": "lesion size",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Attributes:
    """The attributes of one image. Raises `ValueError` for a value that is not in `VALUES`, without quoting it."""

    sex: str = ""
    age: str = ""
    scanner: str = ""
    slice_thickness: str = ""
    lesion_size: str = ""

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) not in ("", *VALUES[field.name]):
                raise ValueError(f"{field.name} is none of the values that a cohort may keep")

    def columns(self) -> dict[str, str]:
        """Return the columns of the cohort's table."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def known_values(column: str, cells_N: Iterable[str]) -> list[str]:
    """Return a column of a cohort's table with "" for every cell that is none of its possible values."""
    allowed = VALUES[column]
    return [cell if cell in allowed else "" for cell in cells_N]


def sex_of(text: object) -> str:
    """Return the value for DICOM PatientSex: M, F or O."""
    return {"F": "female", "M": "male", "O": "other"}.get(str(text or "").strip(" \0").upper(), "")


def age_of(age: object, born: object, examined: object) -> str:
    """Return the band of ten years for DICOM PatientAge (as 045Y), or for PatientBirthDate and StudyDate (YYYYMMDD)."""
    years = _years_of_age(str(age or "").strip(" \0"))
    if years is None:
        years = _years_between(str(born or "").strip(" \0"), str(examined or "").strip(" \0"))
    if years is None or not 0 <= years <= MOST_YEARS:
        return ""
    return age_band(years)


def scanner_of(manufacturer: object) -> str:
    """Return the known manufacturer for DICOM Manufacturer, `OTHER` for an unknown one, "" if it is empty."""
    text = " ".join(str(manufacturer or "").replace("\0", " ").casefold().split())
    if not text:
        return ""
    return next((name for start, name in MANUFACTURERS.items() if f"{text} ".startswith(start)), OTHER)


def thickness_of(thickness_mm: object) -> str:
    """Return the band for DICOM SliceThickness in mm."""
    return _band(thickness_mm, THICKNESS_LIMITS_MM, THICKNESSES)


def lesion_size_of(diameter_mm: object) -> str:
    """Return the band for a lesion's diameter in mm."""
    return _band(diameter_mm, LESION_LIMITS_MM, LESIONS)


def _band(value_mm: object, limits_mm: tuple[float, ...], names: tuple[str, ...]) -> str:
    try:
        number = float(str(value_mm))
    except ValueError:
        return ""
    if not (math.isfinite(number) and number > 0):
        return ""
    return names[sum(number >= limit for limit in limits_mm)]


def _years_of_age(text: str) -> int | None:
    found = re.fullmatch(r"(\d{1,3})([DWMY])", text.upper())
    if found is None:
        return None
    number, unit = int(found[1]), found[2]
    return {"D": number // 365, "W": number // 52, "M": number // 12, "Y": number}[unit]


def _years_between(born: str, examined: str) -> int | None:
    try:
        first, second = (datetime.datetime.strptime(day[:8], "%Y%m%d").date() for day in (born, examined))
    except ValueError:
        return None
    return second.year - first.year - ((second.month, second.day) < (first.month, first.day))
