"""A prediction as a picture in a DICOM Secondary Capture: the region that the model read, with its statement beside it.

The picture says that it is research and not for diagnosis, in its pixels and in its header.
"""

from __future__ import annotations

from collections.abc import Sequence

import highdicom as hd
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from wardround_client.predict.structured_report import MANUFACTURER, TITLE

REGION_PX, WIDTH_PX, MARGIN_PX = 448, 1024, 24
LETTER_PX = 22


def picture(region_HW: np.ndarray, lines: Sequence[str]) -> np.ndarray:
    """Draw a grey region, uint8 (H, W), beside lines of text: uint8 (496, 1024, 3)."""
    height = REGION_PX + 2 * MARGIN_PX
    canvas = Image.new("RGB", (WIDTH_PX, height), (12, 16, 22))
    region = Image.fromarray(region_HW).resize((REGION_PX, REGION_PX), Image.Resampling.BICUBIC)
    canvas.paste(region.convert("RGB"), (MARGIN_PX, MARGIN_PX))
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(LETTER_PX)
    left, top = REGION_PX + 2 * MARGIN_PX, MARGIN_PX
    for line in (*lines, "", *TITLE.split(" - ")):
        for part in _folded(draw, line, font, WIDTH_PX - left - MARGIN_PX):
            draw.text((left, top), part, fill=(235, 238, 242), font=font)
            top += round(1.35 * LETTER_PX)
    return np.asarray(canvas)


def secondary_capture(source: Dataset, picture_HWC: np.ndarray, series_uid: str, number: int, model: str) -> Dataset:
    """Return a Secondary Capture of a picture, uint8 (H, W, 3), for the patient and examination of `source`.

    Raises:
        AttributeError: The header of the source lacks a patient or a study.
    """
    made = hd.sc.SCImage.from_ref_dataset(
        ref_dataset=source,
        pixel_array=picture_HWC,
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system=hd.CoordinateSystemNames.PATIENT,
        series_instance_uid=series_uid,
        series_number=9101,
        sop_instance_uid=generate_uid(),
        instance_number=number,
        manufacturer=MANUFACTURER,
        patient_orientation=("L", "P"),
        transfer_syntax_uid=ExplicitVRLittleEndian,
        series_description=TITLE,
    )
    made.BodyPartExamined = str(source.get("BodyPartExamined") or "CHEST")
    made.ImageComments, made.BurnedInAnnotation = TITLE, "YES"
    made.ManufacturerModelName = model[:64]
    return made


def _folded(
    draw: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width_px: float
) -> list[str]:
    """Return the text in lines that are no wider than `width_px`, if its words are not."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if draw.textlength(longer, font=font) > width_px and lines[-1]:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
