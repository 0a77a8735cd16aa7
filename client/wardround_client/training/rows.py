"""Which rows of a cohort a study trains on and is tested on, and what training reads of them.

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
from wardround_client.training.batches import HeldOutImages, Material, material_of
from wardround_client.training.features import features_of


def usable_rows(study: Study, cohort: Cohort) -> np.ndarray:
    """Rows that the task can train on or be tested with, bool (N,)."""
    return objective_part(study.study.task).usable_rows(study, cohort.labels_N)


def training_rows(study: Study, cohort: Cohort) -> np.ndarray:
    """Usable rows whose patient is not held out by this study, bool (N,)."""
    return usable_rows(study, cohort) & ~_held_out(study, cohort)


def inputs_of(study: Study, cohort: Cohort, device: torch.device, cache_folder: Path | None) -> AnyRows:
    """What training reads of every image: the image, uint8 (N, C, H, W), or its frozen features, float32 (N, D), kept
    in `cache_folder`.
    """
    if objective_part(study.study.task).reads_features(study):
        return features_of(initial_network(study), cohort, device, cache_folder)
    return cohort.images_NCHW


def held_out_images(study: Study, cohort: Cohort) -> HeldOutImages:
    """The usable images of the patients whom this study never trains on."""
    rows_N = np.flatnonzero(usable_rows(study, cohort) & _held_out(study, cohort))
    return HeldOutImages(
        images_NCHW=Rows(cohort.images_NCHW, rows_N),
        labels_N=cohort.labels_N[rows_N].astype(np.int64),
        patient_N=cohort.patient_N[rows_N],
    )


def empty_material(study: Study, device: torch.device) -> Material:
    """The training material of a site where the study finds nobody."""
    cohort = nobody(study)
    inputs_N = inputs_of(study, cohort, device, None)
    return material_of(inputs_N, cohort.labels_N, cohort.patient_N, training_rows(study, cohort))


def no_held_out_images(study: Study) -> HeldOutImages:
    """The held-out images of a site where the study finds nobody."""
    return held_out_images(study, nobody(study))


def _held_out(study: Study, cohort: Cohort) -> np.ndarray:
    """Rows of the patients that a keyed hash holds out for ever, bool (N,)."""
    return (cohort.holdout_rank_P < study.evaluation.holdout)[cohort.patient_N]
