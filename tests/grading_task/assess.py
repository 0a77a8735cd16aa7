"""How well a model grades: the mean absolute error on held-out images, beside that of the untrained network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from wardround.errors import DataError
from wardround.networks.build import initial_network, start_weights
from wardround.networks.weights import load_weights, trained_parameters
from wardround.study.load import Study
from wardround.tasks.assessment import Assessed, AtEnd, SiteData, Trainer, Weights


class GradingAssessment:
    """The error round by round, and at the end."""

    def __init__(self, study: Study, sites: Sequence[SiteData], out: Path, trainer: Trainer) -> None:
        self._study, self._network, self._start = study, initial_network(study).eval(), start_weights(study)
        self._images = np.concatenate([site.values_N[np.flatnonzero(site.held_out_N)] for site in sites])
        self._grades = np.concatenate([site.labels_N[site.held_out_N] for site in sites])
        if not len(self._grades):
            raise DataError("no patient is held out for testing; raise evaluation.holdout, or give more patients")

    def _error(self, weights: Weights) -> float:
        load_weights(trained_parameters(self._network, self._study), weights)
        with torch.no_grad():
            found_N = self._network(torch.from_numpy(self._images))[:, 0].numpy()
        return float(np.abs(found_N - self._grades).mean())

    def after_round(self, round_: int, weights: Weights) -> str:
        return f"error {self._error(weights):.2f} grades"

    def at_end(self, end: AtEnd) -> Assessed:
        trained, start = self._error(end.weights), self._error(self._start)
        return Assessed(
            weights=end.weights,
            result={"mean_absolute_error": trained, "mean_absolute_error_at_start": start},
            site_tests={},
            asked="Grading: how far is the predicted grade from the true one?",
            headline=[f"The mean absolute error is {trained:.2f} grades; it was {start:.2f} before training."],
        )


def assessment_of(study: Study, sites: Sequence[SiteData], out: Path, trainer: Trainer) -> GradingAssessment:
    """The assessment of a run."""
    return GradingAssessment(study, sites, out, trainer)
