"""The rules for studies of reconstruction, in which a network restores degraded images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from wardround.sources.images.study import image_data
from wardround.study.schema import Section
from wardround.tasks.registry import Commands

if TYPE_CHECKING:
    from wardround.study.load import Study

NETWORKS = ("restorer",)
PHANTOM_WEIGHTS = NETWORKS


class ReconstructionSection(Section):
    """`[reconstruction]`: the degradation of images on the fly, and the loss of their restoration.

    All values are public. Only the strength of the chosen degradation is used: `factor` of the lower resolution, `dose`
    as a share of the full dose, `blur_px`, the standard deviation of a Gaussian blur, or `missing`, the share of the
    area. `crop_px` is the side of the square that training crops from an image at random; 0 takes the whole image.
    """

    degradation: Literal["super-resolution", "low-dose", "blur", "missing"] = "super-resolution"
    factor: Literal[2, 4] = 4
    dose: Annotated[float, Field(ge=0.02, lt=1)] = 0.1
    blur_px: Annotated[float, Field(ge=0.5, le=4)] = 1.5
    missing: Annotated[float, Field(ge=0.02, le=0.6)] = 0.2
    adversarial_weight: Annotated[float, Field(ge=0, le=1)] = 0.001
    ssim_weight: Annotated[float, Field(ge=0, le=10)] = 0.02
    crop_px: Annotated[int, Field(ge=0, le=1024, multiple_of=8)] = 64

    @model_validator(mode="after")
    def _crop_is_large_enough(self) -> ReconstructionSection:
        if 0 < self.crop_px < 32:
            raise ValueError("crop_px: 0 for the whole image, or at least 32")
        return self


SECTION = ReconstructionSection
COMMANDS = Commands(compare="methods", phantoms=True)


def section_of(study: Study) -> ReconstructionSection:
    """Return the study's `[reconstruction]`. Raises `TypeError` for a study of another task."""
    section = study.task_section
    if not isinstance(section, ReconstructionSection):
        raise TypeError(f"{study.study.name} is not a reconstruction study")
    return section


def check(study: Study) -> None:
    """Raise `ValueError` if a restorer cannot read the study's images, or its bins do not fit gains in dB."""
    section = section_of(study)
    if image_data(study).channels != "grey":
        raise ValueError("data.channels: a restorer reads grey images; use channels = 'grey'")
    if image_data(study).image_size % 8 or image_data(study).image_size < 32:
        raise ValueError("data.image_size: a restorer needs a multiple of 8, at least 32")
    if section.crop_px > image_data(study).image_size:
        raise ValueError("reconstruction.crop_px: larger than data.image_size")
    if study.evaluation.epsilon > 0 and study.evaluation.logit_scale > 0.5:
        raise ValueError("evaluation.logit_scale: the accept test counts gains in dB; use 0.1, or at most 0.5")
    if study.training.augmentation == "light":
        raise ValueError("training.augmentation: light would blur the image that is to be restored; use none or flips")


def learns(study: Study, labels: str) -> str:
    """Return the end of the sentence "This study trains a network ..."."""
    return f"to restore images that lost something: {section_of(study).degradation.replace('-', ' ')}"
