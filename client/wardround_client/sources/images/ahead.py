"""Images that are prepared study by study, before the last file of a source has arrived, so that no file need be kept.

`pull --into cohort` prepares each study as soon as it is complete. What `ingest` needs of its files is kept instead of
them: their scans, which contain no identity (`records.py`), and the prepared images. Then the files are removed. The
ingest at the end plans the whole source as always, and finds its images here instead of decoding files.

Images are durable before their outcomes, outcomes before scans, and scans before a file is removed: after a crash a
file is either still there or prepared.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from wardround.errors import DataError
from wardround.sources.images.study import ImageData
from wardround.storage.atomic import fsync, write_file
from wardround.storage.folders import make_folder
from wardround.storage.jsonl import append_lines, as_text, read_lines, trim_lines
from wardround_client.sources.images.attributes import Attributes
from wardround_client.sources.images.decoding.decoded_cache import Outcome, request_key
from wardround_client.sources.images.decoding.prepare import prepare, recipe_of, scan
from wardround_client.sources.images.decoding.workers import Lost, WorkerPool
from wardround_client.sources.images.folder.layout import SiteSource, SourceFile
from wardround_client.sources.images.folder.tables import LabelTable
from wardround_client.sources.images.plan import plan_images
from wardround_client.sources.images.source import prepared_by, row_shape
from wardround_client.sources.images.stages import Frame, ImageRequest, PreparedImage, ScannedFile

FOLDER, SETTINGS, SCANS, OUTCOMES, PIXELS = ".prepared", "settings.json", "scans.jsonl", "outcomes.jsonl", "pixels"


class MustComeAgainError(DataError):
    """Prepared images no longer fit the source, for example because a series has grown; their files are needed."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What a source's files are prepared for: the study's data section, the labels, the site's key, the objectors.

    `request` is what was asked for, so that files of another request are not taken for part of this one.
    """

    data: ImageData
    labels: LabelTable | None
    key: bytes = field(repr=False)
    objectors: frozenset[str] = field(repr=False, default=frozenset())
    request: str = field(repr=False, default="")

    @property
    def settings(self) -> str:
        """Everything that decides which images are made of a file."""
        labels = None if self.labels is None else [asdict(row) for row in self.labels.rows]
        data = self.data.model_dump(mode="json")
        text = json.dumps([prepared_by(self.data), data, labels, self.request], sort_keys=True)
        return hashlib.sha256(self.key + text.encode()).hexdigest()


class Ahead:
    """The files of a folder that are prepared. What came or was prepared for something else is removed on opening.

    Attributes:
        scans: The scan of each prepared file, by its name.
        outcomes: The outcome of each request.
        row_of: The row of the prepared images, by the hash of their pixels.
    """

    def __init__(self, folder: Path, origin: Origin) -> None:
        self.folder, self.origin = folder, origin
        self._place = folder / FOLDER
        self._bytes = int(math.prod(row_shape(origin.data)))
        settings = self._place / SETTINGS
        if not settings.is_file() or settings.read_text(encoding="utf-8") != origin.settings:
            shutil.rmtree(folder, ignore_errors=True)
            make_folder(self._place)
            write_file(settings, origin.settings.encode())
        self._scans = _read(self._place / SCANS)
        outcomes = _read(self._place / OUTCOMES)
        self.scans = {one["file"]: _scan_of(one["scan"]) for one in self._scans}
        self.outcomes = {one["request"]: Outcome(**one) for one in (dict(line["outcome"]) for line in outcomes)}
        self.row_of = {line["outcome"]["pixels_sha256"]: line["row"] for line in outcomes if line["row"] is not None}

    @property
    def names(self) -> frozenset[str]:
        """The names of the prepared files, which are no longer there."""
        return frozenset(self.scans)

    def source(self, name: str) -> SiteSource:
        """Return the whole folder as a source: the prepared files and those that are still there."""
        there = {path.name for path in self.folder.iterdir() if path.is_file() and not path.name.startswith(".")}
        files = tuple(SourceFile(path=Path(one)) for one in sorted(there | self.names))
        return SiteSource(name=name, root=self.folder, layout="dicom", files=files, labels=self.origin.labels)

    def images(self) -> np.ndarray:
        """Return the prepared images, N x C x H x W, mapped from the disk."""
        rows = len(self.row_of)
        shape = (rows, *row_shape(self.origin.data))
        if not rows:
            return np.empty(shape, np.uint8)
        return np.memmap(self._place / PIXELS, dtype=np.uint8, mode="r", shape=shape)

    def prepare(self, names: Sequence[str], pool: WorkerPool) -> None:
        """Prepare the files of a study and remove them. Files that cannot be planned alone stay for the ingest.

        Raises:
            OSError: The disk is full, or a file cannot be written.
        """
        data, key = self.origin.data, self.origin.key
        new = [one for one in names if one not in self.scans]
        paths = [self.folder / one for one in new]
        scanned = []
        for record in pool.map(functools.partial(scan, data=data, key=key), paths):
            scanned.append(ScannedFile(content_sha256="", fault=record.code) if isinstance(record, Lost) else record)
        if any(record.fault == "unreachable" for record in scanned):
            return
        planned = [self._without_objectors(record) for record in scanned]
        owners = [record.pseudonym for record in planned]
        files = tuple(SourceFile(path=Path(one)) for one in new)
        source = SiteSource(name="pulled", root=self.folder, layout="dicom", files=files, labels=self.origin.labels)
        try:
            requests = plan_images(source, planned, owners, data, key).requests
        except DataError:  # of the table of labels, which the ingest reports for the whole source
            return
        asked = [request for request in requests if not request.fault]
        recipes = [recipe_of(request, planned, paths.__getitem__) for request in asked]
        images = pool.map(functools.partial(prepare, data=data), recipes)
        self._keep([(self._key(request, planned), image) for request, image in zip(asked, images, strict=True)])
        kept = [replace(record, native=None) for record in scanned]
        lines = [{"file": one, "scan": asdict(record)} for one, record in zip(new, kept, strict=True)]
        append_lines(self._place / SCANS, lines)
        self._scans += lines
        self.scans.update(zip(new, kept, strict=True))
        for path in paths:
            path.unlink()

    def refuse_stale(
        self, requests: Sequence[ImageRequest], scanned: Sequence[ScannedFile], source: SiteSource
    ) -> None:
        """Check that every request has its image or its files.

        Raises:
            MustComeAgainError: Some have neither. Their scans are forgotten, so that a pull asks for their files again.
        """
        stale: set[str] = set()
        for request in requests:
            if self._key(request, scanned) in self.outcomes:
                continue
            places = (request.file, *(place[0] for place in (request.below, request.above) if place is not None))
            names = {source.files[file].path.name for file in places}
            if names & self.names:
                stale |= names
        if stale & self.names:
            self._forget(stale)
            raise MustComeAgainError(
                f"{self.folder}: {len(stale)} files are needed again, because their series has changed; run the same "
                "command again"
            )

    def _key(self, request: ImageRequest, scanned: Sequence[ScannedFile]) -> str:
        return request_key(request, scanned, prepared_by(self.origin.data))

    def _without_objectors(self, record: ScannedFile) -> ScannedFile:
        owner = record.pseudonym
        if not record.fault and owner is None:
            return replace(record, fault="no_patient")
        gone = {owner, record.former_pseudonym} & self.origin.objectors
        return replace(record, fault="opted_out") if gone else record

    def _keep(self, made: Sequence[tuple[str, PreparedImage | Lost]]) -> None:
        """Write images, then their outcomes."""
        lines: list[dict[str, Any]] = []
        path = self._place / PIXELS
        path.touch(0o600)
        with open(path, "r+b") as file:
            file.truncate(len(self.row_of) * self._bytes)  # what a crash left without an outcome
            file.seek(0, os.SEEK_END)
            for request, image in made:
                if isinstance(image, Lost):
                    outcome, row = Outcome(request=request, fault=image.code), None
                else:
                    sha256 = image.pixels_sha256
                    outcome = Outcome(
                        request=request,
                        fault=image.fault,
                        pixels_sha256=sha256,
                        source_sha256=image.source_sha256,
                        hu=image.hu,
                    )
                    row = self.row_of.get(sha256)
                    if row is None and image.pixels_CHW is not None:
                        row = self.row_of[sha256] = len(self.row_of)
                        file.write(np.ascontiguousarray(image.pixels_CHW).data)
                self.outcomes[request] = outcome
                lines.append({"outcome": asdict(outcome), "row": row})
            file.flush()
            os.fsync(file.fileno())
        fsync(self._place)
        append_lines(self._place / OUTCOMES, lines)

    def _forget(self, names: Collection[str]) -> None:
        self._scans = [line for line in self._scans if line["file"] not in names]
        write_file(self._place / SCANS, as_text(self._scans).encode())
        self.scans = {name: one for name, one in self.scans.items() if name not in names}


def _read(path: Path) -> list[dict[str, Any]]:
    try:
        records = read_lines(path)
    except ValueError as error:
        raise DataError(f"{path}: {error}; remove the folder {path.parent}, and run the same command again") from None
    if path.exists():
        trim_lines(path, records)
    return records


def _scan_of(values: Mapping[str, Any]) -> ScannedFile:
    """Return a scan from its JSON."""
    frames = tuple(Frame(**{name: _tuple(value) for name, value in frame.items()}) for frame in values["frames"])
    attributes = Attributes(**values["attributes"])
    return ScannedFile(**{**values, "frames": frames, "attributes": attributes, "native": None})


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
