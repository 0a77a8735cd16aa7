"""Attributes of one DICOM frame: from the object's functional groups (PS3.3 C.7.6.16) or from its top level."""

from __future__ import annotations

from typing import Any

from pydicom import Dataset


def frame_scopes(header: Dataset, index: int) -> list[Dataset]:
    """Return the datasets that may contain a frame's attributes, nearest first.

    These are the frame's own functional groups, the shared functional groups, and the top level of the object.
    """
    scopes: list[Dataset] = []
    own, shared = header.get("PerFrameFunctionalGroupsSequence"), header.get("SharedFunctionalGroupsSequence")
    groups = ([own[index]] if own and index < len(own) else []) + ([shared[0]] if shared else [])
    for group in groups:
        scopes.extend(element.value[0] for element in group if element.VR == "SQ" and element.value)
    return [*scopes, header]


def first_value(scopes: list[Dataset], name: str) -> Any:
    """Return the nearest scope's non-empty value of an attribute, or None."""
    return next((value for scope in scopes if (value := scope.get(name)) not in (None, "", [])), None)
