"""A cache of decoding outcomes, so that no image is decoded twice, and temporary storage for newly decoded pixels.

`decoded.csv` has one line per image: the hash of everything it was made from (content, frame, point, settings), and the
outcome. Pixels themselves are found by their hash, in the existing cohort or among those decoded in this run.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import numpy as np

from wardround.errors import DataError
from wardround.storage.atomic import owner_only, write_file
from wardround_client.sources.cohort import AnyRows, open_cohort, row_hashes
from wardround_client.sources.images.stages import ImageRequest, PreparedImage, ScannedFile

DECODED_FILE, WAITING_FILE = "decoded.csv", "pixels.new"
# Faults of the pixels themselves. Any other may pass (a share that is not reachable, too little memory, a decoder that
# is not installed), so every ingest tries such a file again.
LASTING_FAULTS = frozenset({"blank", "implausible_hu", "no_spacing", "mark_outside", "no_pixels", "too_large"})
COLUMNS = ("request", "fault", "pixels_sha256", "source_sha256", "hu")


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """The outcome of a request: a fault, or the hash of the resulting pixels."""

    request: str
    fault: str = ""
    pixels_sha256: str = ""
    source_sha256: str = ""
    hu: bool = False


def request_key(request: ImageRequest, scanned: Sequence[ScannedFile], prepared_by: str) -> str:
    """Return the hex SHA-256 over everything that determines an image's pixels.

    That is the files' contents, the frames, the point and the settings.
    """
    places = [(request.file, request.frame), request.below, request.above]
    parts = [None if place is None else (scanned[place[0]].content_sha256, place[1]) for place in places]
    return hashlib.sha256(repr((prepared_by, parts, request.mark_xy)).encode()).hexdigest()


class Memory:
    """The pixels available while a cohort is made.

    Use it as a context manager: `with Memory(...) as memory`. The file of newly decoded pixels is removed on exit.
    """

    def __init__(self, folder: Path, shape_CHW: tuple[int, int, int]) -> None:
        self._folder = folder
        self._shape = shape_CHW
        self._bytes = int(np.prod(shape_CHW))
        self._waiting_rows: dict[str, int] = {}
        self._known = _read_outcomes(folder / DECODED_FILE)
        self._cohort_images: AnyRows | None = None
        self._cohort_rows: dict[str, int] = {}
        self._lent_images: AnyRows | None = None
        self._lent_rows: Mapping[str, int] = {}
        self._open_cohort()

    def __enter__(self) -> Memory:
        self._waiting = open(self._folder / WAITING_FILE, "w+b", opener=owner_only)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._waiting.close()
        (self._folder / WAITING_FILE).unlink(missing_ok=True)

    @property
    def has_cohort(self) -> bool:
        """Whether a finished cohort of this shape is in the folder."""
        return self._cohort_images is not None

    def lend(self, outcomes: Mapping[str, Outcome], images: AnyRows, row_of: Mapping[str, int]) -> None:
        """Add outcomes and images that were prepared elsewhere; `row_of` gives the row of pixels by their hash."""
        self._known = {**self._known, **outcomes}
        self._lent_images, self._lent_rows = images, row_of

    def recall(self, request: str) -> Outcome | None:
        """Return the earlier outcome of the same request, or None."""
        return self._known.get(request)

    def has(self, pixels_sha256: str) -> bool:
        """Whether these pixels are available without decoding."""
        return any(pixels_sha256 in rows for rows in (self._waiting_rows, self._cohort_rows, self._lent_rows))

    def keep(self, image: PreparedImage) -> None:
        """Store the pixels of a decoded image until the cohort is written."""
        if image.pixels_CHW is None or self.has(image.pixels_sha256):
            return
        self._waiting.seek(len(self._waiting_rows) * self._bytes)
        self._waiting.write(np.ascontiguousarray(image.pixels_CHW).data)
        self._waiting_rows[image.pixels_sha256] = len(self._waiting_rows)

    def pixels(self, pixels_sha256: str) -> np.ndarray:
        """Return the pixels as uint8, C x H x W. Raises `KeyError` if they are not available."""
        if pixels_sha256 in self._lent_rows:
            return np.asarray(cast("AnyRows", self._lent_images)[self._lent_rows[pixels_sha256]])
        if pixels_sha256 not in self._waiting_rows:
            row = self._cohort_rows[pixels_sha256]
            return np.asarray(cast("AnyRows", self._cohort_images)[row])
        self._waiting.seek(self._waiting_rows[pixels_sha256] * self._bytes)
        return np.frombuffer(self._waiting.read(self._bytes), dtype=np.uint8).reshape(self._shape)

    def save(self, outcomes: Iterable[Outcome]) -> None:
        """Replace the stored outcomes by these, without those whose cause may have been temporary."""
        lasting = [outcome for outcome in dict.fromkeys(outcomes) if _is_lasting(outcome.fault)]
        write_file(self._folder / DECODED_FILE, _outcome_bytes(lasting))

    def _open_cohort(self) -> None:
        try:
            cohort = open_cohort(self._folder)
        except DataError:
            return  # no cohort, or an unfinished one: everything is decoded again
        if cohort.values_N.shape[1:] != self._shape:
            return
        self._cohort_images = cohort.values_N
        self._cohort_rows = {sha256: row for row, sha256 in enumerate(row_hashes(self._folder))}


def forget_pixels(path: Path, pixel_hashes: set[str]) -> None:
    """Remove the outcomes that gave these pixels. `path` is a `DECODED_FILE`, which may be missing."""
    known = _read_outcomes(path)
    if known:
        kept = [outcome for outcome in known.values() if outcome.pixels_sha256 not in pixel_hashes]
        write_file(path, _outcome_bytes(kept))


def _is_lasting(fault: str) -> bool:
    return not fault or fault in LASTING_FAULTS


def _outcome_bytes(outcomes: Iterable[Outcome]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for outcome in outcomes:
        line = (outcome.request, outcome.fault, outcome.pixels_sha256, outcome.source_sha256, int(outcome.hu))
        writer.writerow(line)
    return text.getvalue().encode()


def _read_outcomes(path: Path) -> dict[str, Outcome]:
    if not path.is_file():
        return {}
    with open(path, newline="", encoding="utf-8") as file:
        return {
            line["request"]: Outcome(**cast(dict[str, Any], {**line, "hu": line["hu"] == "1"}))
            for line in csv.DictReader(file)
            if set(line) == set(COLUMNS) and _is_lasting(line["fault"])
        }
