"""Cutting, resampling and windowing: pure functions over arrays that turn a decoded frame into the network's input.

A box is (left, top, right, bottom) in pixels of the frame, where pixel (0, 0) covers 0..1, so its centre is at 0.5. A
marked point (x, y) is counted in pixel centres, as in DICOM (PS3.3 C.7.6.2.1.1). The 0.5 offsets below convert between
the two.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from wardround.sources.images.study import ImageData
from wardround_client.sources.images.stages import UnfitImage

Box = tuple[float, float, float, float]
BLANK_RANGE = 4  # grey values of 255: an image whose darkest and brightest pixel differ by less is blank
LUMINANCE_RGB = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601


def region_box(
    shape_HW: tuple[int, int],
    data: ImageData,
    spacing_mm: tuple[float, float] | None,
    mark_xy: tuple[float, float] | None,
) -> Box:
    """Return the box of a frame that becomes the image; it may extend beyond the frame.

    `whole`: the smallest square around the frame, square in millimetres if the spacing is known. `centre` and `marked`:
    image_size pixels of data.spacing_mm each, or of the frame's own pixel size if the study gives no spacing.

    Raises:
        UnfitImage: `no_spacing` or `mark_outside`.
    """
    height, width = shape_HW
    if data.region == "whole":
        row_mm, column_mm = spacing_mm or (1.0, 1.0)
        side_mm = max(height * row_mm, width * column_mm)
        half_x, half_y = side_mm / column_mm / 2, side_mm / row_mm / 2
        return width / 2 - half_x, height / 2 - half_y, width / 2 + half_x, height / 2 + half_y
    x, y = (width - 1) / 2, (height - 1) / 2
    if data.region == "marked" and mark_xy is not None:
        x, y = mark_xy
    if not (-0.5 <= x <= width - 0.5 and -0.5 <= y <= height - 0.5):
        raise UnfitImage("mark_outside")
    scale_x = scale_y = 1.0
    if data.spacing_mm is not None:
        if spacing_mm is None:
            raise UnfitImage("no_spacing")
        scale_y, scale_x = data.spacing_mm / spacing_mm[0], data.spacing_mm / spacing_mm[1]
    left, right = _interval(x, data.image_size, scale_x)
    top, bottom = _interval(y, data.image_size, scale_y)
    return left, top, right, bottom


def cut(plane_HW: np.ndarray, box: Box, size: int, padding: float) -> np.ndarray:
    """Return the box as a float32 square of `size` pixels, antialiased if it is shrunk; `padding` outside the frame."""
    left, top, right, bottom = box
    if box == (0, 0, plane_HW.shape[1], plane_HW.shape[0]) and plane_HW.shape == (size, size):
        return np.ascontiguousarray(plane_HW, dtype=np.float32)
    # The margin is as wide as the filter, so that the filter covers the pixels around the box. Beyond the frame its
    # edge is repeated; otherwise the padding would bleed into the image.
    margin = math.ceil(max(1.0, (right - left) / size, (bottom - top) / size)) + 1
    x0, y0 = math.floor(left) - margin, math.floor(top) - margin
    canvas = _with_edges(plane_HW, y0, math.ceil(bottom) + margin, x0, math.ceil(right) + margin)
    moved = (left - x0, top - y0, right - x0, bottom - y0)
    if right - left == size == bottom - top and left == int(left) and top == int(top):
        square = canvas[int(moved[1]) : int(moved[1]) + size, int(moved[0]) : int(moved[0]) + size].copy()
    else:
        shrunk = Image.fromarray(canvas).resize((size, size), Image.Resampling.BILINEAR, box=moved)
        square = np.array(shrunk, dtype=np.float32)
    square[_outside(top, bottom, size, plane_HW.shape[0]), :] = padding
    square[:, _outside(left, right, size, plane_HW.shape[1])] = padding
    return square


def _with_edges(plane_HW: np.ndarray, top: int, bottom: int, left: int, right: int) -> np.ndarray:
    """Return rows `top` to `bottom` and columns `left` to `right` as float32; beyond the frame its edge is repeated."""
    height, width = plane_HW.shape
    canvas = np.empty((bottom - top, right - left), dtype=np.float32)
    y0, y1 = (min(max(end, 0), height - 1) for end in (top, bottom - 1))  # the first and last row of the frame in it
    x0, x1 = (min(max(end, 0), width - 1) for end in (left, right - 1))
    above, before = min(max(0, -top), bottom - top - 1), min(max(0, -left), right - left - 1)
    below, after = above + y1 - y0 + 1, before + x1 - x0 + 1
    canvas[above:below, before:after] = plane_HW[y0 : y1 + 1, x0 : x1 + 1]
    canvas[above:below, :before] = canvas[above:below, before : before + 1]
    canvas[above:below, after:] = canvas[above:below, after - 1 : after]
    canvas[:above] = canvas[above]
    canvas[below:] = canvas[below - 1]
    return canvas


def _outside(start: float, end: float, size: int, length: int) -> np.ndarray:
    """Return True for each of `size` pixels between `start` and `end` whose centre is not in the frame."""
    centres = start + (np.arange(size) + 0.5) * (end - start) / size
    return (centres < 0) | (centres >= length)


def to_grey(values: np.ndarray, window: tuple[float, float]) -> np.ndarray:
    """Map the values between the window's ends to uint8 0..255; values outside are clipped."""
    low, high = window
    return np.rint(np.clip((values - low) * (255.0 / (high - low)), 0, 255)).astype(np.uint8)


def robust_window(values: np.ndarray) -> tuple[float, float]:
    """Return the 0.5th and 99.5th percentile, for values without a unit; the full range if the two are equal.

    Raises:
        UnfitImage: "blank", if all values are equal.
    """
    low, high = (float(end) for end in np.percentile(values, (0.5, 99.5)))
    if low == high:
        low, high = float(values.min()), float(values.max())
    if low == high:
        raise UnfitImage("blank")
    return low, high


def luminance(colour_HW3: np.ndarray) -> np.ndarray:
    """Return the grey values of an RGB image (ITU-R BT.601) as float32."""
    return colour_HW3.astype(np.float32) @ LUMINANCE_RGB


def stack_channels(planes: list[np.ndarray], data: ImageData) -> np.ndarray:
    """Stack uint8 planes into C x H x W; a single plane is repeated if the study has more channels."""
    planes = planes * data.channel_count if len(planes) == 1 else planes
    return np.stack(planes)


def refuse_blank(pixels_CHW: np.ndarray) -> None:
    """Raise `UnfitImage("blank")` if the image shows no structure."""
    if int(pixels_CHW.max()) - int(pixels_CHW.min()) < BLANK_RANGE:
        raise UnfitImage("blank")


def _interval(centre: float, size: int, scale: float) -> tuple[float, float]:
    """Return the interval of `size` output pixels, each `scale` input pixels wide, around a pixel centre.

    The ends are whole pixels if nothing is resampled.
    """
    if abs(scale - 1) < 1e-3:
        start = float(math.floor(centre + 0.5 - size / 2))
        return start, start + size
    return centre + 0.5 - size * scale / 2, centre + 0.5 + size * scale / 2
