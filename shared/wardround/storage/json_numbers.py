"""Infinity in JSON: the string "inf", since JSON has no infinite number. An infinite ε or clip means no privacy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

INFINITY = "inf"


def json_number(value: float) -> float | str:
    """A number as JSON can hold it."""
    return INFINITY if value == math.inf else value


def number_of_json(value: Any) -> Any:
    """The inverse of `json_number`; any other value as it is."""
    return math.inf if value == INFINITY else value


def json_numbers(value: Any) -> Any:
    """The same content with every infinity in it, at any depth, as JSON can hold it; tuples become lists."""
    if isinstance(value, Mapping):
        return {key: json_numbers(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_numbers(item) for item in value]
    return json_number(value) if isinstance(value, float) else value
