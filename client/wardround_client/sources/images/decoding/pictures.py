"""Pictures (PNG, JPEG, JPEG 2000, TIFF, BMP, GIF, WebP): 8-bit grey or colour, without HU or PatientID."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, Jpeg2KImagePlugin, TiffImagePlugin, WebPImagePlugin

from wardround.sources.images.study import ImageData
from wardround_client.sources.images.decoding.crop import (
    cut,
    luminance,
    refuse_blank,
    region_box,
    robust_window,
    stack_channels,
    to_grey,
)
from wardround_client.sources.images.stages import PreparedImage, ScannedFile, UnfitImage

PLUGINS = (Jpeg2KImagePlugin, TiffImagePlugin, WebPImagePlugin)  # importing one registers its format with Pillow
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "JPEG2000")
MAX_PIXELS = 200_000_000  # a picture whose header announces more is refused as a decompression bomb
DEEP_MODES = ("I", "I;16", "I;16B", "I;16L", "F")


def scan_picture(path: Path, content_sha256: str) -> ScannedFile:
    """Check that a file is a single picture of acceptable size, and return its record.

    Raises:
        UnfitImage: The picture is too large, or the file contains several pictures.
        Exception: Pillow's own error for a damaged file.
    """
    with _open(path) as picture:
        if picture.width * picture.height > MAX_PIXELS:
            raise UnfitImage("too_large")
        # An MPO is a telephone's JPEG that carries a map of brightness or a small copy; the first picture is the photo.
        if picture.format != "MPO" and getattr(picture, "n_frames", 1) > 1:
            raise UnfitImage("several_pictures")
        return ScannedFile(content_sha256=content_sha256, rows=picture.height, columns=picture.width)


def prepare_picture(path: Path, data: ImageData) -> PreparedImage:
    """Decode, cut and scale one picture.

    HU windows are ignored. For the region `marked`, the picture is assumed to be a crop around the mark already.

    Raises:
        UnfitImage: The picture is blank or unreadable.
        Exception: Pillow's own error for a damaged file.
    """
    pixels = read_picture(path)
    if pixels.min() == pixels.max():
        raise UnfitImage("blank")
    if pixels.ndim == 2 or data.channels != "rgb":
        planes = [pixels if pixels.ndim == 2 else luminance(pixels)]
    else:
        planes = [pixels[:, :, channel] for channel in range(3)]
    # A picture's pixels have no size in millimetres, so the study's spacing cannot apply.
    box = region_box(planes[0].shape, data.model_copy(update={"spacing_mm": None}), None, None)
    squares = [to_grey(cut(plane, box, data.image_size, 0.0), (0.0, 255.0)) for plane in planes]
    pixels_CHW = stack_channels(squares, data)
    refuse_blank(pixels_CHW)
    source = hashlib.sha256(repr(pixels.shape).encode() + np.ascontiguousarray(pixels).tobytes()).hexdigest()
    return PreparedImage(pixels_CHW=pixels_CHW, source_sha256=source)


def read_picture(path: Path) -> np.ndarray:
    """Return a picture as uint8, H x W grey or H x W x 3 colour, turned upright.

    Pictures of more than 8 bits are scaled image by image.
    """
    with _open(path) as picture:
        upright = ImageOps.exif_transpose(picture)
        if upright.mode in DEEP_MODES:
            values = np.asarray(upright, dtype=np.float32)
            if not np.isfinite(values).all():
                raise UnfitImage("unreadable")
            return to_grey(values, robust_window(values))
        if upright.mode in ("1", "L"):
            return np.asarray(upright.convert("L"))
        if "A" in upright.getbands() or "transparency" in upright.info:
            upright = Image.alpha_composite(Image.new("RGBA", upright.size, "black"), upright.convert("RGBA"))
        return np.asarray(upright.convert("RGB"))


def _open(path: Path) -> Image.Image:
    Image.MAX_IMAGE_PIXELS = None  # `scan_picture` checks the limit and reports a reason instead of a warning
    return Image.open(path, formats=FORMATS)
