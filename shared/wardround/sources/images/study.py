"""Images in a study: the `[data]` section, which says which images are read and what is cut out of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, field_validator, model_validator

from wardround.printable import quoted
from wardround.study.schema import DataSection, Text
from wardround.text import count_text

if TYPE_CHECKING:
    from wardround.study.load import Study

MOST_WINDOWS = 16
WIDEST_CUT_MM = 2000.0  # wider than any scanner's field of view; the memory to prepare an image grows with its square
ROW = "image"
HUB_TASK = "image-classification"
UNLIKE = "another kind, body part, size or window"


class ImageData(DataSection):
    """`[data]`: which images are read, and the region that is cut out of them.

    HU windows apply to DICOM images with a rescale; 8-bit images ignore them.
    """

    modality: Literal["CT", "CR", "DX", "MG", "MR", "PT", "any"] = "CT"
    body_part: Text | None = None
    image_size: Annotated[int, Field(ge=16, le=1024)] = 128
    region: Literal["whole", "centre", "marked"] = "whole"
    spacing_mm: Annotated[float, Field(ge=0.01, le=100)] | None = None
    channels: Literal["grey", "rgb", "windows", "slices"] = "grey"
    window_hu: Annotated[tuple[tuple[float, float], ...], Field(max_length=MOST_WINDOWS)] = ((-1000.0, 400.0),)

    @field_validator("window_hu")
    @classmethod
    def _windows_ascend(cls, windows: tuple[tuple[float, float], ...]) -> tuple[tuple[float, float], ...]:
        if not windows:
            raise ValueError("needs at least one window [low, high]")
        for low, high in windows:
            if not (abs(low) <= 1e6 and abs(high) <= 1e6 and high - low >= 1e-3):
                raise ValueError("each window is [low, high] with low < high, in HU, between -1e6 and 1e6")
        return windows

    @model_validator(mode="after")
    def _cut_fits_a_body(self) -> ImageData:
        if self.spacing_mm is not None and self.spacing_mm * self.image_size > WIDEST_CUT_MM:
            raise ValueError(f"spacing_mm: image_size pixels of it are more than {WIDEST_CUT_MM:g} mm")
        return self

    @property
    def channel_count(self) -> int:
        """Channels of an image: grey 1, rgb and slices (below, at, above) 3, windows one each."""
        return {"grey": 1, "rgb": 3, "slices": 3, "windows": len(self.window_hu)}[self.channels]

    @property
    def shape_CHW(self) -> tuple[int, int, int]:
        """The shape of a prepared image."""
        return self.channel_count, self.image_size, self.image_size


SECTION = ImageData


def check(study: Study) -> None:
    """Raise `ValueError` if the network's first weights read other images than the study."""
    if study.model.init == "phantom" and image_data(study).channels != "grey":
        raise ValueError(
            "data.channels: the phantom weights read grey images; use channels = 'grey' or init = 'random'"
        )


def kind(study: Study) -> str:
    """Return what the study reads, in the plural."""
    data = image_data(study)
    return "images" if data.modality == "any" else f"{data.modality} images"


def reads(study: Study) -> str:
    """Return which images of a site the study reads, for a person who approves it."""
    data = image_data(study)
    what = "images of any kind" if data.modality == "any" else kind(study)
    part = f" of the body part {quoted(data.body_part)}" if data.body_part else ""
    cut = {"whole": "the whole image", "centre": "its centre", "marked": "what is cut out around marked points"}
    each = study.privacy.images_per_patient
    images = "all images" if each == "all" else f"at most {count_text(each, 'image')} a step"
    return (
        f"{what}{part} of this site's prepared data, {cut[data.region]}, at {data.image_size} x {data.image_size} "
        f"pixels; {images} of each patient"
    )


def image_data(study: Study) -> ImageData:
    """Return the `[data]` of a study of images. Raises `TypeError` for a study of another source."""
    if not isinstance(study.data, ImageData):
        raise TypeError(f"{study.study.name} is not a study of images")
    return study.data
