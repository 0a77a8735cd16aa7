"""Images as a source of data: what a study asks of them, and whether a prepared cohort answers it.

See `sources/registry.py` for who calls these functions.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from wardround.study.schema import DataSection
from wardround_client.sources.cohort import Cohort
from wardround_client.sources.images.decoding.decoded_cache import DECODED_FILE, forget_pixels

PREPROCESSING_VERSION = 1  # increase it when the same file would give different pixels


def row_shape(data: DataSection) -> tuple[int, int, int]:
    """Return the shape of one image: channels, height and width."""
    return data.channel_count, data.image_size, data.image_size


def row_dtype(data: DataSection) -> Any:
    """Return the dtype of an image, uint8."""
    return np.uint8


def prepared_by(data: DataSection) -> str:
    """Return everything besides the file that determines the pixels: version and settings, as canonical JSON."""
    settings = data.model_dump(include={"image_size", "region", "spacing_mm", "channels", "window_hu"})
    return json.dumps({"preprocessing": PREPROCESSING_VERSION, **settings}, sort_keys=True)


def fits(cohort: Cohort, data: DataSection) -> bool:
    """Return whether the cohort's images have the channels and the size that a study asks for."""
    return cohort.values_N.shape[1:] == row_shape(data) and _channels(cohort) in (None, data.channels)


def differences(cohort: Cohort, data: DataSection) -> list[str]:
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


def forget_rows(folder: Path, hashes: Collection[str]) -> None:
    """Remove the cached decoding outcomes of these images from the cohort's folder."""
    forget_pixels(folder / DECODED_FILE, set(hashes))


def _channels(cohort: Cohort) -> str | None:
    """Return the channel setting that the images were prepared with; None if the cohort has no record of it."""
    try:
        return str(json.loads(cohort.prepared_by)["channels"])
    except (ValueError, TypeError, KeyError):
        return None
