"""Infinity in JSON, represented by the string "inf" because JSON has no infinite number.

An infinite ε or clipping norm means no privacy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

INFINITY = "inf"


def json_number(value: float) -> float | str:
    """Return a number in the form that JSON can represent."""
    return INFINITY if value == math.inf else value


def number_of_json(value: Any) -> Any:
    """Invert `json_number`; any other value is returned unchanged."""
    return math.inf if value == INFINITY else value


def json_numbers(value: Any) -> Any:
    """Return the content with every infinity, at any depth, replaced by "inf"; tuples become lists."""
    if isinstance(value, Mapping):
        return {key: json_numbers(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_numbers(item) for item in value]
    return json_number(value) if isinstance(value, float) else value
