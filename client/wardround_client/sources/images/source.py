"""Images as a source of data: what a study asks of them, and whether a prepared cohort answers it.

See `sources/registry.py` for who calls these functions.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wardround.errors import DataError
from wardround.sources.images.study import ImageData
from wardround_client.sources.cohort import Cohort
from wardround_client.sources.images.decoding.decoded_cache import DECODED_FILE, forget_pixels
from wardround_client.sources.images.quality import reasons

if TYPE_CHECKING:
    from wardround_client.sources.images.decoding.workers import WorkerPool
    from wardround_client.sources.images.folder.layout import SiteSource
    from wardround_client.sources.images.ingest import IngestReport, Progress

REASONS = reasons.REASONS
SHOWS_IMAGES = True
REPORT_PAGE = "quality.html"
LEFT_OUT = ("label_left_out", "image_left_out", "not_marked", "unmatched_label", "skipped", "broken_link")
WORDLESS = ("skipped", "not_marked")  # files that are no images by their name, and those where only points are read
UNKNOWN_PATIENTS = (
    "it is unknown which pictures belong to the same patient, and privacy is promised per patient; add a manifest.csv "
    "(docs/data.md), or --image-is-patient if every picture shows a different patient"
)
PREPROCESSING_VERSION = 1  # increase it when the same file would give different pixels


def row_shape(data: ImageData) -> tuple[int, int, int]:
    """Return the shape of one image: channels, height and width."""
    return data.channel_count, data.image_size, data.image_size


def row_dtype(data: ImageData) -> Any:
    """Return the dtype of an image, uint8."""
    return np.uint8


def prepared_by(data: ImageData) -> str:
    """Return everything besides the file that determines the pixels: version and settings, as canonical JSON."""
    settings = data.model_dump(include={"image_size", "region", "spacing_mm", "channels", "window_hu"})
    return json.dumps({"preprocessing": PREPROCESSING_VERSION, **settings}, sort_keys=True)


def fits(cohort: Cohort, data: ImageData) -> bool:
    """Return whether the cohort's images have the channels and the size that a study asks for."""
    return cohort.values_N.shape[1:] == row_shape(data) and _channels(cohort) in (None, data.channels)


def differences(cohort: Cohort, data: ImageData) -> list[str]:
    """Return how the cohort's images differ from those that a study asks for, one line each."""
    found = []
    prepared, asked = cohort.values_N.shape[1:], row_shape(data)
    kind = _channels(cohort)
    if kind != data.channels and kind is not None:
        found.append(f"images are prepared as {kind}, but the study requires {data.channels}: no patient takes part")
    elif prepared[0] != asked[0]:
        found.append(f"images have {prepared[0]} channels, but the study requires {asked[0]}: no patient takes part")
    if prepared[1:] != asked[1:]:
        sizes = " x ".join(map(str, prepared[1:])), " x ".join(map(str, asked[1:]))
        found.append(f"images are {sizes[0]} pixels, but the study requires {sizes[1]}: no patient takes part")
    return found


def synthetic_patients(data: ImageData, rows: Sequence[int], generator: np.random.Generator) -> np.ndarray:
    """Return images of noise, uint8 (N, C, H, W): those of a patient differ by a few grey levels."""
    patient_N = np.repeat(np.arange(len(rows)), rows)
    size = row_shape(data)
    of_patient = generator.integers(0, 250, (len(rows), *size))
    return (of_patient[patient_N] + generator.integers(0, 6, (len(patient_N), *size))).astype(np.uint8)


def forget_rows(folder: Path, hashes: Collection[str]) -> None:
    """Remove the cached decoding outcomes of these images from the cohort's folder."""
    forget_pixels(folder / DECODED_FILE, set(hashes))


def discover(folder: Path, data: ImageData, sites: int | None = None) -> Sequence[SiteSource]:
    """Return the sites found in a folder, sorted by name (`folder/layout.py`)."""
    from wardround_client.sources.images.folder import layout

    return layout.discover(folder, data, sites)


def of_one_hospital(folder: Path, data: ImageData, name: str) -> SiteSource:
    """Return a folder as the data of one hospital, whatever its layout. It may lack a rare label of the study."""
    from wardround_client.sources.images.folder import layout

    try:
        (source,) = layout.discover(folder, data, sites=1, every_label=False)
    except DataError:
        if len(layout.discover(folder, data)) == 1:  # `discover` itself raises if the fault is a different one
            raise
        raise DataError(f"{folder}: holds the data of several sites; give the folder of this hospital") from None
    return replace(source, name=name)


def shared_patients(one: Iterable[SiteSource], other: Iterable[SiteSource]) -> int:
    """Return the number of patients in both."""
    from wardround_client.sources.images.folder import layout

    return layout.shared_patients(one, other)


def worker_pool(workers: int) -> AbstractContextManager[WorkerPool]:
    """Return worker processes that decode images, which many small sites can share."""
    from wardround_client.sources.images.decoding.workers import WorkerPool

    return WorkerPool(workers)


def ingest(
    source: SiteSource,
    data: ImageData,
    folder: Path,
    key: bytes,
    *,
    workers: int,
    objectors: frozenset[str] = frozenset(),
    progress: Progress | None = None,
    pool: WorkerPool | None = None,
) -> IngestReport:
    """Prepare a site's cohort and its quality report (`ingest.py`)."""
    from wardround_client.sources.images import ingest as images

    return images.ingest(source, data, folder, key, workers=workers, objectors=objectors, progress=progress, pool=pool)


def _channels(cohort: Cohort) -> str | None:
    """Return the channel setting that the images were prepared with; None if the cohort has no record of it."""
    try:
        return str(json.loads(cohort.prepared_by)["channels"])
    except (ValueError, TypeError, KeyError):
        return None
