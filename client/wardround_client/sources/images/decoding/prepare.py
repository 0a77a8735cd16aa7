"""The work of a worker process on a file: `scan` reads its header, and `prepare` makes images from it."""

from __future__ import annotations

import functools
import hashlib
import io
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from wardround.errors import required
from wardround.sources.images.study import ImageData
from wardround_client.sources.cohort import values_sha256
from wardround_client.sources.images.decoding.crop import (
    cut,
    luminance,
    refuse_blank,
    region_box,
    stack_channels,
    to_grey,
)
from wardround_client.sources.images.decoding.pictures import prepare_picture, scan_picture
from wardround_client.sources.images.folder.files import OTHER, PICTURE, file_kind, foreign_format
from wardround_client.sources.images.stages import ImageRequest, PreparedImage, ScannedFile, UnfitImage

if TYPE_CHECKING:  # pydicom is slow to import, and not needed for pictures
    from wardround_client.sources.images.decoding.dicom_pixels import FramePixels
    from wardround_client.sources.images.decoding.native import NativePixels

READ_AT_ONCE_BYTES = 64 * 2**20  # a larger file is read twice instead of being held in memory


@dataclass(frozen=True, kw_only=True, slots=True)
class FrameAddress:
    """The location of a frame on disk."""

    path: Path = field(repr=False)
    frame: int = 0
    spacing_mm: tuple[float, float] | None = None
    native: NativePixels | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """One image for a worker to make: an `ImageRequest` with paths instead of indices."""

    kind: str
    here: FrameAddress
    below: FrameAddress | None = None
    above: FrameAddress | None = None
    mark_xy: tuple[float, float] | None = None


def recipe_of(request: ImageRequest, scanned: Sequence[ScannedFile], path_of: Callable[[int], Path]) -> Recipe:
    """Return the work for a planned image. `path_of` gives the path of a file by its index in `scanned`."""

    def address(place: tuple[int, int]) -> FrameAddress:
        file, frame = place
        record = scanned[file]
        return FrameAddress(
            path=path_of(file), frame=frame, spacing_mm=record.frames[frame].spacing_mm, native=record.native
        )

    return Recipe(
        kind=scanned[request.file].kind,
        here=address((request.file, request.frame)),
        below=None if request.below is None else address(request.below),
        above=None if request.above is None else address(request.above),
        mark_xy=request.mark_xy,
    )


def scan(path: Path, data: ImageData, key: bytes) -> ScannedFile:
    """Hash a file and scan its header. If the file cannot be used, the record has a `fault`; no exception is raised."""
    content_sha256 = ""
    try:
        with open(path, "rb") as file:
            content = file.read(min(os.fstat(file.fileno()).st_size, READ_AT_ONCE_BYTES))
            digest = hashlib.sha256(content)
            while more := file.read(READ_AT_ONCE_BYTES):
                content = b""
                digest.update(more)
        content_sha256 = digest.hexdigest()
        kind = file_kind(path)
        if kind == PICTURE:
            return scan_picture(path, content_sha256)
        if kind == OTHER and (foreign := foreign_format(path)) is not None:
            raise UnfitImage(foreign)
        from wardround_client.sources.images.decoding.dicom_header import scan_dicom

        return scan_dicom(io.BytesIO(content) if content else path, content_sha256, data, key)
    except Exception as error:
        return ScannedFile(content_sha256=content_sha256, fault=_reason(error))


def prepare(recipe: Recipe, data: ImageData) -> PreparedImage:
    """Decode, cut and scale one image. If it cannot be used, the result has a `fault`; no exception is raised."""
    try:
        image = prepare_picture(recipe.here.path, data) if recipe.kind == "picture" else _prepare_dicom(recipe, data)
        return replace(image, pixels_sha256=values_sha256(required(image.pixels_CHW, "image")))
    except Exception as error:
        return PreparedImage(fault=_reason(error))


def _reason(error: Exception) -> str:
    """Return the reason code for an error raised on a file.

    Decoders raise almost any exception on damaged input. One file's fault must not stop the others, and the text of the
    error may quote the file. An error of the system has a number; Pillow's errors about damaged files are `OSError`s
    without one.
    """
    if isinstance(error, UnfitImage):
        return error.code
    if isinstance(error, MemoryError):
        return "out_of_memory"
    return "unreachable" if isinstance(error, OSError) and error.errno is not None else "unreadable"


def _prepare_dicom(recipe: Recipe, data: ImageData) -> PreparedImage:
    frame = _frame(recipe.here)
    box = region_box(frame.values.shape[:2], data, recipe.here.spacing_mm, recipe.mark_xy)
    if data.channels == "slices":
        planes = [_neighbour(recipe.below, frame), frame.values, _neighbour(recipe.above, frame)]
    else:
        planes = [frame.values]
    windows = list(data.window_hu) if data.channels == "windows" else [data.window_hu[0]]
    outside_hu = min(low for low, _ in windows)
    squares: list[np.ndarray] = []
    for plane in planes:
        if frame.hu:
            square = cut(plane, box, data.image_size, outside_hu)
            squares.extend(to_grey(square, window) for window in windows)
        elif plane.ndim == 3 and data.channels == "rgb":
            colours = (cut(plane[:, :, channel], box, data.image_size, 0.0) for channel in range(3))
            squares.extend(to_grey(colour, (0.0, 255.0)) for colour in colours)
        else:
            grey = luminance(plane) if plane.ndim == 3 else plane
            squares.append(to_grey(cut(grey, box, data.image_size, 0.0), (0.0, 255.0)))
    pixels_CHW = stack_channels(squares, data)
    refuse_blank(pixels_CHW)
    return PreparedImage(pixels_CHW=pixels_CHW, source_sha256=frame.source_sha256, hu=frame.hu)


def _neighbour(address: FrameAddress | None, frame: FramePixels) -> np.ndarray:
    """Return the neighbouring slice, or the slice itself at the end of a series or if the neighbour differs in kind."""
    if address is None:
        return frame.values
    other = _frame(address)
    return other.values if other.values.shape == frame.values.shape and other.hu == frame.hu else frame.values


def _frame(address: FrameAddress) -> FramePixels:
    return _decoded(address.path, address.frame, address.path.stat().st_mtime_ns, address.native)


@functools.lru_cache(maxsize=4)
def _decoded(path: Path, index: int, changed_ns: int, native: NativePixels | None) -> FramePixels:
    """Decode a frame and cache the last few: each neighbour is requested three times in a row."""
    from wardround_client.sources.images.decoding.dicom_pixels import read_frame

    return read_frame(path, index, native)
