"""Maps as DICOM Parametric Maps (PS3.3 A.75) on the grid of the source image, so that a viewer can lay them over it.

A map repeats the patient's identification from the source, refers to the source, and is marked as research. Values
outside the region that the model read are zero. Shapes: H, W rows and columns of the source; h, w of the map.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import highdicom as hd
import numpy as np
import torch
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import generate_uid
from torch.nn import functional

from wardround.sources.images.study import ImageData
from wardround_client.predict.source_header import source_header
from wardround_client.predict.structured_report import MANUFACTURER
from wardround_client.sources.images.decoding.crop import Box, region_box
from wardround_client.sources.images.decoding.prepare import scan

NEEDED = ("FrameOfReferenceUID", "ImagePositionPatient")
NOTICE = "RESEARCH - NOT FOR DIAGNOSTIC USE"
SERIES_NUMBER = 9102
SCAN_KEY = b"explain"  # for keyed identifiers that are not used here


def header_for_map(path: Path) -> Dataset | None:
    """Return the header of a DICOM file that a map can refer to, or None: a single frame with its place in space."""
    header = source_header(path)
    if header is None or int(header.get("NumberOfFrames") or 1) != 1:
        return None
    return header if all(header.get(name) for name in NEEDED) else None


def source_box(path: Path, header: Dataset, data: ImageData, mark_xy: tuple[float, float] | None) -> Box:
    """Return the box of the source that the model read, in pixels, as ingestion cuts it."""
    spacing_mm = scan(path, data, SCAN_KEY).frames[0].spacing_mm
    return region_box((int(header.Rows), int(header.Columns)), data, spacing_mm, mark_xy)


def on_source_grid(map_hw: np.ndarray, box: Box, shape_HW: tuple[int, int]) -> np.ndarray:
    """Resample a map of a box to the pixels of the source, float32 (H, W); zero outside the box."""
    left, top, right, bottom = box
    x_W = 2 * (torch.arange(shape_HW[1]) + 0.5 - left) / (right - left) - 1
    y_H = 2 * (torch.arange(shape_HW[0]) + 0.5 - top) / (bottom - top) - 1
    grid_1HW2 = torch.stack(torch.meshgrid(x_W, y_H, indexing="xy"), -1)[None].float()
    map_11hw = torch.from_numpy(np.ascontiguousarray(map_hw, np.float32))[None, None]
    inside_HW = (grid_1HW2.abs() <= 1).all(-1)[0]
    placed_HW = functional.grid_sample(map_11hw, grid_1HW2, padding_mode="border", align_corners=False)[0, 0]
    return (placed_HW * inside_HW).numpy()


def parametric_map(
    header: Dataset, map_HW: np.ndarray, title: str, model: str, series_uid: str, number: int
) -> Dataset:
    """Return a Parametric Map of 32-bit floats on the grid of its source.

    Args:
        header: The header of the source (`header_for_map`).
        map_HW: The map on the source's grid.
        title: What it shows, for the viewer's list.
        model: The name of the model.
        series_uid: The UID of the new series of maps.
        number: The number of the map in its series.
    """
    low, high = float(map_HW.min()), float(map_HW.max())
    made = hd.pm.ParametricMap(
        source_images=[header],
        pixel_array=np.ascontiguousarray(map_HW[None], np.float32),
        series_instance_uid=series_uid,
        series_number=SERIES_NUMBER,
        sop_instance_uid=generate_uid(),
        instance_number=number,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=model[:64],
        software_versions=version("wardround"),
        device_serial_number="none",
        contains_recognizable_visual_features=False,
        real_world_value_mappings=[
            hd.pm.RealWorldValueMapping(
                lut_label="SCORE",
                lut_explanation=title,
                unit=codes.UCUM.NoUnits,
                value_range=(low, max(high, low + 1e-6)),
                slope=1.0,
                intercept=0.0,
            )
        ],
        voi_lut_transformations=[
            hd.VOILUTTransformation(
                window_center=(low + high) / 2,
                window_width=max(high - low, 1e-6),
                voi_lut_function="LINEAR_EXACT",  # the only linear one for windows narrower than 1
            )
        ],
        content_label="EXPLANATION",
        content_description=f"{title}. {NOTICE}"[:64],
    )
    made.SeriesDescription = f"{title} - {NOTICE}"[:64]
    made.BodyPartExamined = str(header.get("BodyPartExamined") or "CHEST")
    made.ImageComments = NOTICE
    return made
