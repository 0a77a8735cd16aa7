"""Reads the images that a model is asked about, by the same scan, plan and decoding as ingestion.

Source files are opened read-only, in worker processes. Whatever cannot be used is refused with a reason, as ingestion
would do; a refusal never stops the other files.
"""

from __future__ import annotations

import functools
import os
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from wardround.errors import DataError
from wardround.sources.images.study import ImageData
from wardround_client.sources.cohort import pseudonym
from wardround_client.sources.images.decoding.prepare import prepare, recipe_of, scan
from wardround_client.sources.images.decoding.workers import Lost, WorkerPool
from wardround_client.sources.images.folder.files import LABELS, MANIFEST, PICTURE, file_kind, list_files
from wardround_client.sources.images.folder.layout import SiteSource, SourceFile
from wardround_client.sources.images.folder.tables import LabelTable, read_label_table, read_manifest, read_points
from wardround_client.sources.images.plan import plan_images
from wardround_client.sources.images.quality.reasons import REASONS
from wardround_client.sources.images.stages import PreparedImage, ScannedFile

FILES_A_WORKER = 64  # starting a worker takes about as long as this many files
SITE_REASONS = frozenset({"not_marked", "image_left_out"})  # counts, which are not about one file

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True, eq=False)
class ReadImage:
    """One image ready for the network.

    `pixels_CHW` is uint8. `frame` counts from 1. `nodule` is the row of the table of points, as a spreadsheet counts,
    or None. `patient` counts the patients of one call from 1, in the order of their first file. `is_dicom` is whether
    the source is a DICOM object. `mark_xy` is the point in pixels of the source (column, row).
    """

    path: Path = field(repr=False)
    frame: int
    patient: int
    nodule: int | None
    is_dicom: bool
    mark_xy: tuple[float, float] | None
    pixels_CHW: np.ndarray = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """A file, or one image of it, that the model is not asked about. `code` is a key of `REASONS`."""

    path: Path = field(repr=False)
    code: str
    frame: int | None = None

    @property
    def title(self) -> str:
        """The reason in words."""
        return REASONS[self.code].title if self.code in REASONS else self.code

    @property
    def advice(self) -> str:
        """What can be done about it."""
        return REASONS[self.code].advice if self.code in REASONS else ""


@dataclass(frozen=True, kw_only=True)
class ReadImages:
    """The images of a call, series by series in the order of slices, the refusals, and two counts.

    `passed_over` are files that are no images by their name; `not_marked` are images to which no row of the table of
    points refers.
    """

    images: tuple[ReadImage, ...]
    refused: tuple[Refusal, ...]
    passed_over: int = 0
    not_marked: int = 0


def read_images(
    source: Path, data: ImageData, points: Path | None = None, progress: Progress | None = None
) -> ReadImages:
    """Read one file or a folder.

    A folder may contain `manifest.csv`, which names the patients of pictures, and `labels.csv`, whose positions are
    used unless `points` is another table of positions. Labels in the tables are ignored. Without a manifest a picture
    is a patient of its own.

    Args:
        source: A file or a folder.
        data: The study's data section.
        points: A table as `labels.csv`, with or without labels.
        progress: Called as `progress(done, total)`; it counts files scanned and images made.

    Raises:
        DataError: There is no such file or folder, a table is wrong, or the folder contains no image file.
    """
    site = _source(source, data, points)
    key = secrets.token_bytes(32)  # for the comparison of identifiers within this call
    paths = [site.root / file.path for file in site.files]
    with WorkerPool(min(os.cpu_count() or 1, 1 + len(paths) // FILES_A_WORKER)) as pool:
        scanned = _scanned(pool, paths, data, key, progress)
        owners = [
            record.pseudonym if file.patient_id is None else pseudonym(key, file.patient_id)
            for file, record in zip(site.files, scanned, strict=True)
        ]
        scanned = [
            replace(record, fault="no_patient") if owner is None and not record.fault else record
            for owner, record in zip(owners, scanned, strict=True)
        ]
        plan = plan_images(site, scanned, owners, data, key)
        asked = [request for request in plan.requests if not request.fault]
        recipes = [recipe_of(request, scanned, paths.__getitem__) for request in asked]
        images: list[ReadImage] = []
        refused = [Refusal(path=path, code=one.fault) for path, one in zip(paths, scanned, strict=True) if one.fault]
        refused += [
            Refusal(path=paths[one.file], code=one.fault, frame=one.frame + 1) for one in plan.requests if one.fault
        ]
        refused += [
            Refusal(path=source if one.file is None else paths[one.file], code=one.code)
            for one in plan.findings
            if one.code not in SITE_REASONS and REASONS[one.code].fault
        ]
        numbers: dict[str | None, int] = {}
        for owner in owners:
            numbers.setdefault(owner, len(numbers) + 1)
        made = pool.map(functools.partial(prepare, data=data), recipes)
        for done, (request, image) in enumerate(zip(asked, made, strict=True), 1):
            path = paths[request.file]
            if isinstance(image, PreparedImage) and image.pixels_CHW is not None:
                images.append(
                    ReadImage(
                        path=path,
                        frame=request.frame + 1,
                        patient=numbers[owners[request.file]],
                        nodule=request.table_row,
                        is_dicom=scanned[request.file].kind == "dicom",
                        mark_xy=request.mark_xy,
                        pixels_CHW=image.pixels_CHW,
                    )
                )
            else:
                code = image.code if isinstance(image, Lost) else image.fault
                refused.append(Refusal(path=path, code=code, frame=request.frame + 1))
            if progress is not None:
                progress(len(paths) + done, len(paths) + len(asked))
    return ReadImages(
        images=tuple(images), refused=tuple(refused), passed_over=site.skipped, not_marked=len(plan.left_out)
    )


def _source(source: Path, data: ImageData, points: Path | None) -> SiteSource:
    """Return the files of a call as ingestion sees a site's, with the positions instead of labels."""
    if not source.exists():
        raise DataError(f"{source}: no such file or folder")
    if source.is_file():
        root, files, skipped = source.parent.resolve(), [SourceFile(path=Path(source.name))], 0
    else:
        root = source.resolve()
        if (root / MANIFEST).is_file():
            rows = read_manifest(root / MANIFEST)
            files, skipped = [SourceFile(path=row.path, patient_id=row.patient_id) for row in rows], 0
        else:
            listing = list_files(root)
            files, skipped = [SourceFile(path=path.relative_to(root)) for path in listing.files], listing.skipped
    if not files:
        raise DataError(f"{source}: contains no image file")
    files = [file if file.patient_id is not None else _with_patient(root, file) for file in files]
    return SiteSource(
        name="asked", root=root, layout="dicom", files=tuple(files), labels=_points(root, data, points), skipped=skipped
    )


def _with_patient(root: Path, file: SourceFile) -> SourceFile:
    """Take a picture as a patient of its own; only the header of a DICOM file names its patient."""
    try:
        is_picture = file_kind(root / file.path) == PICTURE
    except OSError:  # the scan gives the reason
        return file
    return replace(file, patient_id=file.path.as_posix()) if is_picture else file


def _points(root: Path, data: ImageData, points: Path | None) -> LabelTable | None:
    if points is not None:
        table = read_points(points)
    elif (root / LABELS).is_file():
        table = read_label_table(root / LABELS)
    else:
        return None
    if not table.has_points:
        return None
    # the plan leaves out rows of labels that the study does not have; here every row counts
    return replace(table, rows=tuple(replace(row, label=data.labels[0]) for row in table.rows))


def _scanned(
    pool: WorkerPool, paths: Sequence[Path], data: ImageData, key: bytes, progress: Progress | None
) -> list[ScannedFile]:
    scanned = []
    for done, record in enumerate(pool.map(functools.partial(scan, data=data, key=key), paths), 1):
        scanned.append(ScannedFile(content_sha256="", fault=record.code) if isinstance(record, Lost) else record)
        if progress is not None:
            progress(done, 2 * len(paths))
    return scanned
