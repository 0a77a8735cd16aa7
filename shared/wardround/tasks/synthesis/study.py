"""The rules for studies of synthesis, in which a model makes images that show no patient."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from wardround.study.schema import Rate, Section
from wardround.tasks.registry import Commands

if TYPE_CHECKING:
    from wardround.study.load import Study

NETWORKS = ("phantom-sampler", "dcgan")
PHANTOM_WEIGHTS = NETWORKS


class SynthesisSection(Section):
    """`[synthesis]`: the settings of the synthesis of images.

    All of them are public. `realness_weight` is for the phantom sampler, the others are for the GAN.
    """

    fakes_per_step: Annotated[int, Field(ge=1, le=4096)] = 64  # per step of the discriminator and of the generator
    generator_steps: Annotated[int, Field(ge=0, le=1000)] = 1  # at the end of each round
    generator_learning_rate: Rate = 2e-4
    realness_weight: Annotated[float, Field(gt=0, le=10)] = 0.3  # of the sampler's realness, relative to its label


SECTION = SynthesisSection
COMMANDS = Commands(generate=True, phantoms=True)


def section_of(study: Study) -> SynthesisSection:
    """Return the study's `[synthesis]`. Raises `TypeError` for a study of another task."""
    section = study.task_section
    if not isinstance(section, SynthesisSection):
        raise TypeError(f"{study.study.name} is not a synthesis study")
    return section


def check(study: Study) -> None:
    """Raise `ValueError` if figures are to be released for more than two labels."""
    if study.evaluation.epsilon > 0 and len(study.data.labels) > 2:
        raise ValueError("evaluation.epsilon: figures are released for two labels only; set it to 0")


def learns(study: Study, labels: str) -> str:
    """Return the end of the sentence "This study trains a network ..."."""
    return f"to make new images, of no patient, that look like those labelled {labels}"
