"""Pictures of an explanation as PNG: the image, maps over it with a legend, and phantoms.

Red raises the score of the label, blue lowers it; the strength is relative to the strongest place of the map. Shapes: H
rows, W columns.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageDraw

SHOWN_PX = 448
LEGEND_PX = 18
RAISES, LOWERS = np.array([214, 40, 40], np.float32), np.array([29, 90, 200], np.float32)
STRONGEST = 0.7  # opacity of the colour at the strongest place
FRAME = (170, 178, 186)
FAINTEST = 0.08  # weaker places, relative to the strongest, have no colour


def grey_picture(image_HW: np.ndarray, side_px: int = SHOWN_PX) -> Image.Image:
    """Return an image, uint8 (H, W), as a picture of `side_px` pixels a side."""
    return Image.fromarray(image_HW).resize((side_px, side_px), Image.Resampling.BICUBIC).convert("RGB")


def overlay(
    image_HW: np.ndarray, map_HW: np.ndarray, reads_px: int | None = None, side_px: int = SHOWN_PX
) -> Image.Image:
    """Return an image, uint8 (H, W), with a map, float32 (H, W), over it.

    A ring marks the strongest raising place, and a frame the middle square of `reads_px` pixels, if it is smaller than
    the image.
    """
    strongest = max(float(np.abs(map_HW).max()), 1e-12)
    scaled = Image.fromarray((map_HW / strongest).astype(np.float32))
    map_hw = np.asarray(scaled.resize((side_px, side_px), Image.Resampling.BICUBIC)).clip(-1, 1)
    share = (np.abs(map_hw) - FAINTEST).clip(0) / (1 - FAINTEST) * STRONGEST
    colour = np.where(map_hw[..., None] > 0, RAISES, LOWERS)
    grey = np.asarray(grey_picture(image_HW, side_px), np.float32)
    picture = Image.fromarray(np.rint(grey * (1 - share[..., None]) + colour * share[..., None]).astype(np.uint8))
    if map_HW.max() > 0:
        row, column = np.unravel_index(int(map_HW.argmax()), map_HW.shape)
        x, y = ((place + 0.5) * side_px / map_HW.shape[0] for place in (column, row))
        reach = side_px / 40
        ImageDraw.Draw(picture).ellipse((x - reach, y - reach, x + reach, y + reach), outline=(255, 255, 255), width=2)
    if reads_px is not None and reads_px < image_HW.shape[0]:
        margin = side_px * (1 - reads_px / image_HW.shape[0]) / 2
        ImageDraw.Draw(picture).rectangle((margin, margin, side_px - margin, side_px - margin), outline=FRAME)
    return picture


def legend(width_px: int = SHOWN_PX) -> Image.Image:
    """Return the scale of the colours, from lowering to raising, on the grey of lung."""
    value = np.linspace(-1, 1, width_px, dtype=np.float32)[None].repeat(LEGEND_PX, 0)
    share = ((np.abs(value) - FAINTEST).clip(0) / (1 - FAINTEST) * STRONGEST)[..., None]
    colour = np.where(value[..., None] > 0, RAISES, LOWERS)
    return Image.fromarray(np.rint(np.float32(110) * (1 - share) + colour * share).astype(np.uint8))


def png(picture: Image.Image) -> bytes:
    """Return the bytes of a PNG file."""
    file = io.BytesIO()
    picture.save(file, format="PNG", optimize=True)
    return file.getvalue()
