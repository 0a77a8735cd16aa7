"""The sources of data that a site can prepare, and what the rest of the client may ask of one.

A source is a folder beside this file. Its `source.py` has the functions of `Source`; its other modules turn a
hospital's files into a cohort (`sources/cohort.py`). After that nothing depends on the source.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, cast

from wardround.study.schema import DataSection
from wardround_client.sources.cohort import Cohort


class Source(Protocol):
    """The functions of a source's `source.py`."""

    def row_shape(self, data: DataSection) -> tuple[int, ...]:
        """Return the shape of one row that a study asks for."""

    def row_dtype(self, data: DataSection) -> Any:
        """Return the dtype of the rows that a study asks for."""

    def fits(self, cohort: Cohort, data: DataSection) -> bool:
        """Return whether the cohort was prepared as the study asks, apart from its labels."""

    def differences(self, cohort: Cohort, data: DataSection) -> list[str]:
        """Return why the cohort does not fit, one line each; empty if it fits."""

    def forget_rows(self, folder: Path, hashes: Collection[str]) -> None:
        """Remove what the source itself keeps in the cohort's folder about the rows with these `values_sha256`."""


def source_of(data: DataSection) -> Source:
    """Return the source of the data that a study describes. There is one, images."""
    return all_sources()[0]


def all_sources() -> tuple[Source, ...]:
    """Return every source."""
    from wardround_client.sources.images import source as images

    return (_as_source(images),)


def _as_source(module: ModuleType) -> Source:
    return cast(Source, module)
