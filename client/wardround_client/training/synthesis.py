"""Synthesis: a model that makes images of no patient. One of the tasks of `task.py`, with two kinds of model.

`phantom-sampler` chooses among public phantoms and labels them (`sampler_training.py`); `dcgan` is a generator trained
against a discriminator (`gan_training.py`). In both, patients move only what is clipped, noised and charged: two linear
heads, or the discriminator.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from wardround.study.load import Study
from wardround.tasks.synthesis.gan import SharedGAN
from wardround_client.clipping.bookkeeping import Precision
from wardround_client.clipping.select import EngineMemory
from wardround_client.privacy.plan import PrivacyPlan
from wardround_client.privacy.secure_random import SecretRandom
from wardround_client.sources.cohort import Cohort
from wardround_client.training import gan_training, sampler_training
from wardround_client.training.batches import Material, SpeedPlan
from wardround_client.training.features import features_of
from wardround_client.training.scoring import patient_logits
from wardround_client.training.weights import initial_network


def usable_rows(study: Study, cohort: Cohort) -> np.ndarray:
    """Rows with a label, bool (N,): what is made has one."""
    return cohort.labels_N >= 0


def inputs_of(study: Study, cohort: Cohort, device: torch.device, cache_folder: Path | None) -> np.ndarray:
    """What training reads of each image: itself, uint8 (N, C, H, W), or for the sampler features, float32 (N, D)."""
    if study.model.name == "dcgan":
        return cohort.images_NCHW
    return features_of(initial_network(study), cohort, device, cache_folder)


def plan_speed(
    network: nn.Module,
    study: Study,
    plan: PrivacyPlan,
    device: torch.device,
    memory: EngineMemory | None = None,
    precision: Precision = "float32",
) -> SpeedPlan:
    """Choose the clipping engine of the part that patients move, proved against the one-patient loop on synthetic
    input. Raises `WardroundError` where the proof fails.
    """
    way = gan_training if isinstance(network, SharedGAN) else sampler_training
    return way.plan_speed(network.to(device), study, plan, device, memory, precision)


def train(
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
    """Run the local steps of one round from `weights`; returns all that travels, float32, same names and shapes.

    Exactly `plan.local_steps` noisy steps happen whatever the data are; no optimiser state outlives the call.
    """
    way = gan_training if isinstance(network, SharedGAN) else sampler_training
    return way.train(study, plan, network.to(device), weights, material, round_, randomness, device, speed)


held_out_scores = patient_logits  # how much a patient's image looks like the second label, the highest of their images
