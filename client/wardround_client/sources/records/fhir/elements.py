"""Elements of FHIR resources, read without trust: what is missing or of another type is None or empty, no error."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from wardround_client.sources.records.tables.cells import time_of

LOINC = "http://loinc.org"
LONGEST_ID = 128  # characters; FHIR allows 64


def inside(element: Any, *path: str) -> Any:
    """Return what lies at a path of names; of a list, what its first element has; None if there is nothing."""
    for name in path:
        if isinstance(element, list):
            element = element[0] if element else None
        element = element.get(name) if isinstance(element, dict) else None
    return element


def text(element: Any) -> str:
    """Return a text without outer spaces; "" for anything else."""
    return element.strip() if isinstance(element, str) else ""


def number(element: Any) -> float | None:
    """Return a finite number, or None. Truth values are no numbers."""
    if isinstance(element, bool) or not isinstance(element, (int, float)):
        return None
    try:
        value = float(element)
    except OverflowError:
        return None
    return value if math.isfinite(value) else None


def id_of(name: Any) -> str:
    """Return an id; "" for what is none, or is longer than an id can be: ids of all patients are kept in memory."""
    found = text(name)
    return found if len(found) <= LONGEST_ID else ""


def patient_of(resource: Any) -> str:
    """Return the id of the patient whom a resource is about: the end of the reference, whatever server it names."""
    reference = text(inside(resource, "subject", "reference"))
    if not reference:
        return ""
    if reference.startswith("urn:"):
        return id_of(reference.rpartition(":")[2])
    kind, _, name = reference.partition("/_history/")[0].rpartition("/")
    return id_of(name) if kind.rpartition("/")[2] in ("Patient", "") else ""


def codings(concept: Any) -> Iterator[tuple[str, str]]:
    """Yield system and code of each coding of a CodeableConcept."""
    found = inside(concept, "coding")
    for coding in found if isinstance(found, list) else ():
        yield text(inside(coding, "system")), text(inside(coding, "code"))


def time(element: Any) -> tuple[float, bool, bool]:
    """Return the seconds of a dateTime since 1970 (NaN if there is none), whether it has a zone, whether only a day."""
    written = text(element)
    if len(written) < len("2026-01-31"):  # a year or a month alone
        return math.nan, False, bool(written)
    seconds, zoned, day_only, _ = time_of(written)
    return seconds, zoned, day_only
