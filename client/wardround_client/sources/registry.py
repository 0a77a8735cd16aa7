"""The sources of data that a site can prepare, and what the rest of the client may ask of one.

A source is a folder beside this file, of the same name as in `wardround.sources`. Its `source.py` has the functions of
`Source`; its other modules turn a hospital's files into a cohort (`sources/cohort.py`). After that nothing depends on
the source.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np

from wardround.sources import SOURCES
from wardround.study.schema import DataSection
from wardround_client.sources.cohort import Cohort
from wardround_client.sources.quality import Quality, Reason

Progress = Callable[[int, int], None]  # (done, total)


class FoundSite(Protocol):
    """The data of one site on disk, not yet read."""

    @property
    def name(self) -> str:
        """The site's name, which is also the name of a folder."""

    @property
    def patients_are_assumed(self) -> bool:
        """Whether the data do not say which rows belong to the same patient, so that each is taken as one."""


class IngestReport(Protocol):
    """The result of an ingest. Nothing in it can name a patient."""

    @property
    def quality(self) -> Quality:
        """The findings of the quality gate."""

    @property
    def unread(self) -> int:
        """The number of files that could not be read at all."""

    @property
    def lost_most(self) -> bool:
        """Whether more could not be read than is in the cohort."""

    @property
    def summary(self) -> str:
        """One line for a person: how many patients and rows, and what was read now."""

    def to_json(self) -> dict:
        """Return plain values for `--json` and a run's report."""


class Source(Protocol):
    """The functions of a source's `source.py`. `data` is the study's `[data]`, a section of this source."""

    SHOWS_IMAGES: bool  # whether a row is an image, uint8 (C, H, W), that a report can show
    REPORT_PAGE: str  # the quality report for people, in the cohort's folder
    REASONS: Mapping[str, Reason]  # by code, of what is put aside or remarked on
    LEFT_OUT: Sequence[str]  # codes of remarks about what was left out on purpose
    WORDLESS: Sequence[str]  # codes of `LEFT_OUT` that are not worth a line after every ingest
    UNKNOWN_PATIENTS: str  # why a site is not taken whose patients are assumed, and what to do

    def row_shape(self, data: DataSection) -> tuple[int, ...]:
        """Return the shape of one row that a study asks for."""

    def row_dtype(self, data: DataSection) -> Any:
        """Return the dtype of the rows that a study asks for."""

    def fits(self, cohort: Cohort, data: DataSection) -> bool:
        """Return whether the cohort was prepared as the study asks, apart from its labels."""

    def differences(self, cohort: Cohort, data: DataSection) -> list[str]:
        """Return why the cohort does not fit, one line each; empty if it fits."""

    def synthetic_patients(self, data: DataSection, rows: Sequence[int], generator: np.random.Generator) -> np.ndarray:
        """Return rows of invented patients, as a study reads them: `rows[p]` of patient p, alike, one after another."""

    def forget_rows(self, folder: Path, hashes: Collection[str]) -> None:
        """Remove what the source itself keeps in the cohort's folder about the rows with these `values_sha256`."""

    def discover(self, folder: Path, data: DataSection, sites: int | None = None) -> Sequence[FoundSite]:
        """Return the sites found in a folder, sorted by name. `sites`: over how many to split data that name none.

        Raises:
            DataError: The data cannot be right for the study (one line).
        """

    def of_one_hospital(self, folder: Path, data: DataSection, name: str) -> FoundSite:
        """Return a folder as the data of one hospital, under this name. Raises `DataError` if it holds several."""

    def shared_patients(self, one: Iterable[FoundSite], other: Iterable[FoundSite]) -> int:
        """Return the number of patients in both."""

    def worker_pool(self, workers: int) -> AbstractContextManager[Any]:
        """Return what several ingests in a row can share, for `ingest`."""

    def ingest(
        self,
        source: FoundSite,
        data: DataSection,
        folder: Path,
        key: bytes,
        *,
        workers: int,
        objectors: frozenset[str] = frozenset(),
        progress: Progress | None = None,
        pool: Any = None,
    ) -> IngestReport:
        """Prepare a site's cohort and its quality report in `folder`.

        Raises:
            DataError: Nothing can be used, most cannot be read, or another ingest is running. An existing cohort stays.
        """


def source_of(data: DataSection) -> Source:
    """Return the source of the data that a study describes."""
    from wardround.sources.registry import source_study

    return source_named(next(name for name in SOURCES if type(data) is source_study(name).SECTION))


def all_sources() -> tuple[Source, ...]:
    """Return every source."""
    return tuple(map(source_named, SOURCES))


def source_named(name: str) -> Source:
    """Return a source by its name, a key of `SOURCES`."""
    return cast(Source, importlib.import_module(f"wardround_client.sources.{name}.source"))
