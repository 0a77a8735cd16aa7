"""Grading in a study: labels are grades in ascending order, and a network predicts the grade as a number."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from wardround.study.schema import Section

if TYPE_CHECKING:
    from wardround.study.load import Study

NETWORKS = ("grade-net",)
PHANTOM_WEIGHTS = ()


class GradingSection(Section):
    """`[grading]`: what only grading has."""

    channels: Annotated[int, Field(ge=4, le=64)] = 8  # feature maps of the network


SECTION = GradingSection


def section_of(study: Study) -> GradingSection:
    """The study's `[grading]`. Raises `TypeError` for a study of another task."""
    section = study.task_section
    if not isinstance(section, GradingSection):
        raise TypeError(f"{study.study.name} is not a study of grading")
    return section


def check(study: Study) -> None:
    """Grading releases no figures."""
    if study.evaluation.epsilon > 0:
        raise ValueError("evaluation.epsilon: grading releases no figures; set it to 0")


def learns(study: Study, labels: str) -> str:
    """What the study trains a network for."""
    return f"to grade images on the scale {labels}"
