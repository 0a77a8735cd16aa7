"""Synthesis in a study: a model that makes images of no patient."""

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
    """`[synthesis]`: what only the synthesis of images has. All of it is public, and all but `realness_weight` is for
    the GAN.
    """

    fakes_per_step: Annotated[int, Field(ge=1, le=4096)] = 64  # of the discriminator's step, and of the generator's
    generator_steps: Annotated[int, Field(ge=0, le=1000)] = 1  # at the end of each round
    generator_learning_rate: Rate = 2e-4
    realness_weight: Annotated[float, Field(gt=0, le=10)] = 0.3  # of the sampler's realness beside its label


SECTION = SynthesisSection
COMMANDS = Commands(generate=True, phantoms=True)


def section_of(study: Study) -> SynthesisSection:
    """The study's `[synthesis]`. Raises `TypeError` for a study of another task."""
    section = study.task_section
    if not isinstance(section, SynthesisSection):
        raise TypeError(f"{study.study.name} is no study of synthesis")
    return section


def check(study: Study) -> None:
    """Figures are released for two labels only."""
    if study.evaluation.epsilon > 0 and len(study.data.labels) > 2:
        raise ValueError("evaluation.epsilon: figures are released for two labels only; set it to 0")


def learns(study: Study, labels: str) -> str:
    """What the study trains a network for."""
    return f"to make new images, of no patient, that look like those labelled {labels}"
