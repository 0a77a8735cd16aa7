"""What a study asks a site to do with its images: one module a task, each with the functions of `Task`.

A round is the same story for all of them (`rounds/training.py`); a task says which rows train, what training reads of
an image, how a patient's gradient is clipped, and what a held-out patient's score is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import nn

from wardround.study.load import Study
from wardround_client.clipping.bookkeeping import Precision
from wardround_client.clipping.select import EngineMemory
from wardround_client.privacy.plan import PrivacyPlan
from wardround_client.privacy.secure_random import SecretRandom
from wardround_client.sources.cohort import Cohort, Rows
from wardround_client.sources.study_cohort import nobody
from wardround_client.training import classification, reconstruction, synthesis
from wardround_client.training.batches import HeldOutImages, Material, SpeedPlan, material_of


class Task(Protocol):
    """The functions of a task's module. Shapes: N images, C channels, H and W pixels, P patients."""

    def usable_rows(self, study: Study, cohort: Cohort) -> np.ndarray:
        """Rows that the task can train on or be tested with, bool (N,)."""

    def inputs_of(self, study: Study, cohort: Cohort, device: torch.device, cache_folder: Path | None) -> np.ndarray:
        """What training reads of every image: uint8 (N, C, H, W), or float32 features (N, D) kept in `cache_folder`."""

    def plan_speed(
        self,
        network: nn.Module,
        study: Study,
        plan: PrivacyPlan,
        device: torch.device,
        memory: EngineMemory | None = None,
        precision: Precision = "float32",
    ) -> SpeedPlan:
        """Choose a clipping engine and prove it against the one-patient loop on synthetic input.

        Raises `WardroundError` where the proof fails: the site then does not train.
        """

    def train(
        self,
        study: Study,
        plan: PrivacyPlan,
        network: nn.Module,
        weights: dict[str, np.ndarray],
        material: Material,
        round_: int,
        randomness: SecretRandom,
        device: torch.device,
        speed: SpeedPlan | None = None,
    ) -> dict[str, np.ndarray]:
        """The local steps of one round from `weights`: all that travels, float32, same names and shapes.

        Exactly `plan.local_steps` noisy steps of the plan's Gaussian mechanism, whatever the data are; everything else
        in it is a function of their results and of public numbers.
        """

    def held_out_scores(
        self,
        network: nn.Module,
        study: Study,
        weights: dict[str, np.ndarray],
        held_out: HeldOutImages,
        device: torch.device,
    ) -> tuple[np.ndarray, np.ndarray]:
        """One score (P,) and one yes or no (P,) a held-out patient, each from that patient alone: what is binned,
        noised, charged and released.
        """


TASKS: dict[str, Task] = {
    "classification": classification,
    "reconstruction": reconstruction,
    "synthesis": synthesis,
}  # a module is what its functions say it is


def task_of(study: Study) -> Task:
    """The task of a study."""
    return TASKS[study.study.task]


def training_rows(study: Study, cohort: Cohort) -> np.ndarray:
    """Usable rows whose patient is not held out by this study, bool (N,)."""
    return task_of(study).usable_rows(study, cohort) & ~_held_out(study, cohort)


def held_out_images(study: Study, cohort: Cohort) -> HeldOutImages:
    """The usable images of the patients whom this study never trains on."""
    rows_N = np.flatnonzero(task_of(study).usable_rows(study, cohort) & _held_out(study, cohort))
    return HeldOutImages(
        images_NCHW=Rows(cohort.images_NCHW, rows_N),
        labels_N=cohort.labels_N[rows_N].astype(np.int64),
        patient_N=cohort.patient_N[rows_N],
    )


def empty_material(study: Study, device: torch.device) -> Material:
    """The training material of a site where the study finds nobody."""
    cohort = nobody(study)
    inputs_N = task_of(study).inputs_of(study, cohort, device, None)
    return material_of(inputs_N, cohort.labels_N, cohort.patient_N, training_rows(study, cohort))


def no_held_out_images(study: Study) -> HeldOutImages:
    """The held-out images of a site where the study finds nobody."""
    return held_out_images(study, nobody(study))


def _held_out(study: Study, cohort: Cohort) -> np.ndarray:
    """Rows of the patients that a keyed hash holds out for ever, bool (N,)."""
    return (cohort.holdout_rank_P < study.evaluation.holdout)[cohort.patient_N]
