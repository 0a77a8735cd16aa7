"""Classification: a network that tells labels apart. One of the tasks of `task.py`.

Training reads images, or where only the head moves the frozen network's features, computed once and kept.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from wardround.study.load import Study
from wardround_client.clipping.batch_size import images_at_once, images_per_batch
from wardround_client.clipping.bookkeeping import Precision
from wardround_client.clipping.select import EngineMemory, Sample, checked_engine, speed_of
from wardround_client.privacy.plan import PrivacyPlan
from wardround_client.privacy.secure_random import SecretRandom
from wardround_client.sources.cohort import Cohort
from wardround_client.training.augmentation import augmentation
from wardround_client.training.batches import IMAGES_PER_PHYSICAL_BATCH, Material, SpeedPlan
from wardround_client.training.features import features_of
from wardround_client.training.scoring import patient_logits
from wardround_client.training.steps import PatientsTerm, pull_to_start, take_noisy_steps
from wardround_client.training.weights import initial_network, load_weights, trained_parameters, weights_of


def usable_rows(study: Study, cohort: Cohort) -> np.ndarray:
    """Rows with a label, bool (N,)."""
    return cohort.labels_N >= 0


def reads_features(study: Study) -> bool:
    """Whether training reads frozen features instead of images: only the head moves, and nothing is augmented."""
    return study.model.trainable == "head" and study.training.augmentation == "none"


def inputs_of(study: Study, cohort: Cohort, device: torch.device, cache_folder: Path | None) -> np.ndarray:
    """What training reads of each image: itself, uint8 (N, C, H, W), or its frozen features, float32 (N, D)."""
    if not reads_features(study):
        return cohort.images_NCHW
    return features_of(initial_network(study), cohort, device, cache_folder)


def trained_part(network: nn.Module, study: Study) -> nn.Module:
    """The module that training runs: the head alone over frozen features, else the whole network."""
    return network.head if reads_features(study) else network


def loss_per_image(logits_NK: Tensor, labels_N: Tensor) -> Tensor:
    """Binary cross-entropy for one output, cross-entropy for more; (N,) losses."""
    if logits_NK.shape[1] == 1:
        return functional.binary_cross_entropy_with_logits(
            logits_NK[:, 0], labels_N.to(logits_NK.dtype), reduction="none"
        )
    return functional.cross_entropy(logits_NK, labels_N, reduction="none")


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
    """Run the local steps of one round from `weights`; returns the new weights, float32, same names and shapes.

    Exactly `plan.local_steps` noisy steps happen whatever the data are; no optimiser state outlives the call. `speed`
    comes from `plan_speed`; without it the engine is the one by rule.
    """
    network = network.to(device).train()
    parameters = trained_parameters(network, study)
    received = load_weights(parameters, weights)
    part = trained_part(network, study)
    local = {name.removeprefix("head.") if part is not network else name: p for name, p in parameters.items()}
    augment = augmentation(study, randomness)
    term = PatientsTerm(part=part, parameters=local, loss_per_image=loss_per_image, augment=augment)
    pull = pull_to_start(study, local, received)
    take_noisy_steps(study, plan, term, material, round_, randomness, device, speed, pull)
    return weights_of(parameters)


def plan_speed(
    network: nn.Module,
    study: Study,
    plan: PrivacyPlan,
    device: torch.device,
    memory: EngineMemory | None = None,
    precision: Precision = "float32",
) -> SpeedPlan:
    """Choose the clipping engine, prove it against the one-patient loop on synthetic input, and plan the memory.

    `memory` is what a site keeps of engines (`engine_choice.py`). Raises `WardroundError` where the proof fails.
    """
    part = trained_part(network.to(device), study)
    parameters = trained_parameters(network, study)
    local = {name.removeprefix("head.") if part is not network else name: p for name, p in parameters.items()}
    generator = torch.Generator().manual_seed(0)  # synthetic input: no patient, no secret
    if reads_features(study):
        inputs_N = torch.randn(7, network.head.in_features, generator=generator)
    else:
        size = (7, study.data.channel_count, study.data.image_size, study.data.image_size)
        inputs_N = torch.randint(0, 256, size, generator=generator, dtype=torch.uint8)
    inputs_N = inputs_N.to(device)
    sample = Sample(images_N=inputs_N, outputs=network.head.out_features, images_per_unit=plan.images_per_patient)
    most = IMAGES_PER_PHYSICAL_BATCH if reads_features(study) else images_at_once(part, local, inputs_N)
    engine = checked_engine(
        part,
        local,
        loss_per_image,
        sample,
        plan.max_grad_norm,
        speed=speed_of(plan, precision, most),
        memory=memory,
    )
    return SpeedPlan(engine=engine, images_per_batch=images_per_batch(plan, most))


held_out_scores = patient_logits  # a patient's score is the highest logit of their images
