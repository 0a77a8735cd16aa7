"""Spellings of units: UCUM, as FHIR has it, and what people write instead, in one form that can be compared.

Only spellings are equated here, never different units: conversions are the vocabulary's.
"""

from __future__ import annotations

import re
import unicodedata

ANNOTATION = re.compile(r"\{[^}]*\}")
LITRE = re.compile(r"(?<![A-Za-z])([mudc]?)l\b")
# Spellings of one unit; the first is the one to which the others are brought.
SAME = (
    ("mmHg", "mm[Hg]", "mm Hg", "torr"),
    ("/min", "1/min", "min-1", "bpm", "beats/min", "breaths/min", "per minute"),
    ("Cel", "°C", "C", "degC", "deg C"),
    ("[degF]", "°F", "F", "degF", "deg F"),
    ("10*3/uL", "10*9/L", "10^3/uL", "10^9/L", "K/uL", "x10E3/uL", "10E3/uL", "10E9/L", "G/L", "Thousand/uL"),
    ("U/L", "IU/L", "[IU]/L", "[iU]/L"),
    ("meq/L", "mEq/L"),
    ("ug/L", "ng/mL", "mcg/L"),
    ("ng/L", "pg/mL"),
    ("umol/L", "mcmol/L"),
    ("a", "years", "year", "yr", "yrs", "y"),
    ("1", "[pH]", "pH", "(score)", "score", "points"),
    ("[lb_av]", "lb", "lbs"),
    ("[in_i]", "in", "inch", "inches"),
    ("kPa", "kpa"),
    ("%", "percent"),
)
FIRST = {spelling: spellings[0] for spellings in SAME for spelling in spellings}


def plain_unit(text: str) -> str:
    """Return a unit in the spelling by which units are compared; "" for none, or for an annotation alone."""
    text = unicodedata.normalize("NFKC", text).replace("\u03bc", "u").strip()  # NFKC makes the micro sign a mu
    text = LITRE.sub(r"\1L", ANNOTATION.sub("", text))
    text = FIRST.get(text, text)
    return FIRST.get(text.replace(" ", ""), text)
