"""How well a run's model tells labels apart: figures by image, and by patient beside them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from wardround.metrics.classification import Unit
from wardround.study.load import Study
from wardround.tasks.assessment import ComparisonRow, SiteData, Trainer
from wardround.tasks.labelled import comparison
from wardround.tasks.labelled.assessment import LabelAssessment

UNITS: tuple[Unit, ...] = ("slice", "patient")


def assessment_of(study: Study, sites: Sequence[SiteData], out: Path, trainer: Trainer) -> LabelAssessment:
    """The assessment of a run. Raises `DataError` where nobody is held out to test on."""
    return LabelAssessment(study, sites, out, trainer, UNITS[0])


def settings_rows(
    study: Study, sites: Sequence[SiteData], others: Sequence[SiteData], settings: Sequence[str], trainer: Trainer
) -> list[ComparisonRow]:
    """A fold of `compare`, by setting and unit. Raises `DataError` where there is no labelled patient to test on."""
    return comparison.settings_rows(study, sites, others, settings, trainer, UNITS)
