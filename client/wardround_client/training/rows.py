"""Selection of a cohort's rows for training and for testing, and the inputs that training reads.

Shapes: N rows, P patients.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from wardround.networks.build import initial_network
from wardround.study.load import Study
from wardround.tasks.registry import objective_part
from wardround_client.sources.cohort import AnyRows, Cohort, Rows
from wardround_client.sources.study_cohort import nobody
from wardround_client.training.batches import HeldOutRows, Material, material_of
from wardround_client.training.features import features_of


def usable_rows(study: Study, cohort: Cohort) -> np.ndarray:
    """Return the rows on which the task can train or be tested, bool (N,)."""
    return objective_part(study.study.task).usable_rows(study, cohort.labels_N)


def training_rows(study: Study, cohort: Cohort) -> np.ndarray:
    """Return the usable rows of patients whom this study does not hold out, bool (N,)."""
    return usable_rows(study, cohort) & ~_held_out(study, cohort)


def inputs_of(study: Study, cohort: Cohort, device: torch.device, cache_folder: Path | None) -> AnyRows:
    """Return the input that training reads for every row of the cohort.

    This is the row itself (of images uint8 (N, C, H, W)), or its frozen features, float32 (N, D), cached in
    `cache_folder`.
    """
    if objective_part(study.study.task).reads_features(study):
        return features_of(initial_network(study), cohort, device, cache_folder)
    return cohort.values_N


def held_out_rows(study: Study, cohort: Cohort) -> HeldOutRows:
    """Return the usable rows of the patients on whom this study never trains."""
    rows_N = np.flatnonzero(usable_rows(study, cohort) & _held_out(study, cohort))
    return HeldOutRows(
        values_N=Rows(cohort.values_N, rows_N),
        labels_N=cohort.labels_N[rows_N].astype(np.int64),
        patient_N=cohort.patient_N[rows_N],
        extra={name: tuple(column[row] for row in rows_N) for name, column in cohort.extra.items()},
    )


def empty_material(study: Study, device: torch.device) -> Material:
    """Return the training material of a site without any patient for the study."""
    cohort = nobody(study)
    inputs_N = inputs_of(study, cohort, device, None)
    return material_of(inputs_N, cohort.labels_N, cohort.patient_N, training_rows(study, cohort))


def no_held_out_rows(study: Study) -> HeldOutRows:
    """Return the held-out rows of a site without any patient for the study: none."""
    return held_out_rows(study, nobody(study))


def _held_out(study: Study, cohort: Cohort) -> np.ndarray:
    """Return the rows of the patients whom a keyed hash holds out permanently, bool (N,)."""
    return (cohort.holdout_rank_P < study.evaluation.holdout)[cohort.patient_N]
