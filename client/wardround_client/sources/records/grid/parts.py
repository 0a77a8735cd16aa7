"""Measurements on disk, in parts of neighbouring patients, so that memory grows neither with rows nor with patients.

    .parts/000000    measurements of the first patients, in the order in which they were read
    .parts/000001    ...

The folder lies in the cohort's folder, is readable by its owner only, holds no identifier of a patient, and is removed
when the ingest ends, or when the next one begins.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from wardround.storage.atomic import OWNERS_FOLDER, owner_only
from wardround_client.sources.records.events import Events

PARTS_FOLDER = ".parts"
MOST_PARTS = 256  # a billion rows are then four million a part
LEAST_PATIENTS = 64  # of a part
ROW = np.dtype([("patient", "<i4"), ("second", "<i4"), ("value", "<f4"), ("variable", "<i2"), ("rank", "<i2")])


class Parts:
    """The parts of one ingest; a context manager that removes them at its end."""

    def __init__(self, folder: Path, patients: int) -> None:
        self._folder = folder / PARTS_FOLDER
        self.patients_each = max(LEAST_PATIENTS, -(-patients // MOST_PARTS))
        self.patients = patients

    def __enter__(self) -> Parts:
        remove_parts(self._folder.parent)  # a crash may have left them
        self._folder.mkdir(mode=OWNERS_FOLDER, parents=True)
        return self

    def __exit__(self, *_: object) -> None:
        remove_parts(self._folder.parent)

    def add(self, events: Events) -> None:
        """Append measurements to the parts of their patients."""
        if not len(events):
            return
        rows = np.empty(len(events), ROW)
        rows["patient"], rows["second"], rows["value"] = events.patient_N, events.second_N, events.value_N
        rows["variable"], rows["rank"] = events.variable_N, events.name_rank_N
        part_N = events.patient_N // self.patients_each
        order_N = np.argsort(part_N, kind="stable")
        parts, starts = np.unique(part_N[order_N], return_index=True)
        for part, own_N in zip(parts.tolist(), np.split(order_N, starts[1:]), strict=True):
            with open(self._path(part), "ab", opener=owner_only) as file:
                file.write(rows[own_N].tobytes())

    def __iter__(self) -> Iterator[tuple[int, int, Events]]:
        """Yield the first patient of each part, the one after its last, and the measurements."""
        for part in range(-(-self.patients // self.patients_each)):
            first = part * self.patients_each
            path = self._path(part)
            rows = np.fromfile(path, ROW) if path.exists() else np.empty(0, ROW)
            yield (
                first,
                min(first + self.patients_each, self.patients),
                Events(
                    patient_N=rows["patient"],
                    second_N=rows["second"].astype(np.int64),
                    variable_N=rows["variable"],
                    name_rank_N=rows["rank"],
                    value_N=rows["value"].astype(np.float64),
                ),
            )

    def replace(self, first: int, cells: np.ndarray) -> None:
        """Write what a part has become in place of its measurements."""
        with open(self._path(first // self.patients_each), "wb", opener=owner_only) as file:
            file.write(cells.tobytes())

    def replaced(self, kind: np.dtype) -> Iterator[tuple[int, int, np.ndarray]]:
        """Yield the first patient of each part, the one after its last, and what `replace` wrote."""
        for part in range(-(-self.patients // self.patients_each)):
            first = part * self.patients_each
            yield first, min(first + self.patients_each, self.patients), np.fromfile(self._path(part), kind)

    def _path(self, part: int) -> Path:
        return self._folder / f"{part:06d}"


def remove_parts(folder: Path) -> None:
    """Remove the parts in a cohort's folder, if there are any."""
    shutil.rmtree(folder / PARTS_FOLDER, ignore_errors=True)
