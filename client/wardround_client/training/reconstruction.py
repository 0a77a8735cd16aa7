"""Reconstruction: a conditional GAN that restores what was degraded. One of the tasks of `task.py`.

A patient's images are degraded here, on the fly, from the site's secret numbers; neither they nor what is left of them
goes anywhere. A patient's gradient is that of generator and discriminator together
(`shared/wardround/tasks/reconstruction/loss.py`), clipped as one vector to C and covered by one noise: one step, one
event, as in every other task. Shapes: N images, H rows, W columns, P patients.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from wardround.study.load import Study
from wardround.tasks.reconstruction.degradations import Degradation, degradation_of, degrade, numbers_of
from wardround.tasks.reconstruction.image_quality import psnr_db, to_8_bit
from wardround.tasks.reconstruction.loss import JointLoss, LossWeights, loss_of_image
from wardround.tasks.reconstruction.restorer import INPUTS, inputs_of_degraded
from wardround_client.clipping.batch_size import images_at_once, images_per_batch
from wardround_client.clipping.bookkeeping import Precision
from wardround_client.clipping.select import EngineMemory, Sample, checked_engine, speed_of
from wardround_client.privacy.plan import PrivacyPlan
from wardround_client.privacy.secure_random import SecretRandom
from wardround_client.sources.cohort import Cohort
from wardround_client.training.augmentation import augmentation
from wardround_client.training.batches import Augmentation, HeldOutImages, Material, SpeedPlan
from wardround_client.training.scoring import score_or_nan
from wardround_client.training.steps import PatientsTerm, pull_to_start, take_noisy_steps
from wardround_client.training.weights import initial_network, load_weights, trained_parameters, weights_of


def usable_rows(study: Study, cohort: Cohort) -> np.ndarray:
    """Every row: restoring needs no label, bool (N,)."""
    return np.ones(len(cohort.labels_N), dtype=bool)


def inputs_of(study: Study, cohort: Cohort, device: torch.device, cache_folder: Path | None) -> np.ndarray:
    """The images themselves, uint8 (N, 1, H, W): they are degraded anew in every step, and nothing is kept."""
    return cohort.images_NCHW


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

    Guarantee: each step adds the clipped joint gradients of the drawn patients, sensitivity C over generator and
    discriminator together, and one noise of deviation sigma C: one Gaussian event. Exactly `plan.local_steps` of them
    happen whatever the data are; an empty draw steps on noise alone.
    """
    network = network.to(device).train()
    parameters = trained_parameters(network, study)
    received = load_weights(parameters, weights)
    term = PatientsTerm(
        part=joint_loss(network, study),
        parameters=parameters,
        loss_per_image=loss_of_image,
        augment=spoiling(study, randomness),
    )
    pull = pull_to_start(study, parameters, received)
    take_noisy_steps(study, plan, term, material, round_, randomness, device, speed, pull)
    return weights_of(parameters)


def joint_loss(network: nn.Module, study: Study) -> JointLoss:
    """The network under the study's loss of an image: what the clipping engines run."""
    section = study.reconstruction
    return JointLoss(network, LossWeights(adversarial=section.adversarial_weight, ssim=section.ssim_weight))


def spoiling(study: Study, randomness: SecretRandom) -> Augmentation:
    """Drawn images (N, 1, H, W), uint8 -> what the generator reads and the true image (N, 4, h, w), float32.

    Each image by itself: a random crop, the study's flips, the degradation and its classical start.
    """
    degradation, crop_px = degradation_of(study.reconstruction), study.reconstruction.crop_px
    flips = augmentation(study, randomness)

    @torch.no_grad()
    def spoil(images_N1HW: Tensor) -> Tensor:
        true_N1HW = flips(cropped(images_N1HW, crop_px, randomness)).float()
        return torch.cat([inputs_of_degraded(degrade(true_N1HW, degradation, randomness), degradation), true_N1HW], 1)

    return spoil


def cropped(images_N1HW: Tensor, crop_px: int, randomness: SecretRandom) -> Tensor:
    """A square of `crop_px` pixels from a random place in each image; the images as they are for 0."""
    rows, columns = images_N1HW.shape[-2:]
    if not crop_px or (rows, columns) == (crop_px, crop_px):
        return images_N1HW
    place_N2 = randomness.uniform(2 * len(images_N1HW)).reshape(-1, 2)
    out = images_N1HW.new_empty(len(images_N1HW), images_N1HW.shape[1], crop_px, crop_px)
    for image, (down, right) in enumerate(place_N2):
        top, left = int(down * (rows - crop_px + 1)), int(right * (columns - crop_px + 1))
        out[image] = images_N1HW[image, :, top : top + crop_px, left : left + crop_px]
    return out


def plan_speed(
    network: nn.Module,
    study: Study,
    plan: PrivacyPlan,
    device: torch.device,
    memory: EngineMemory | None = None,
    precision: Precision = "float32",
) -> SpeedPlan:
    """Choose the clipping engine, prove it against the one-patient loop on synthetic input, and plan the memory.

    Raises `WardroundError` where the proof fails.
    """
    joint = joint_loss(network.to(device), study)
    parameters = trained_parameters(network, study)
    generator = torch.Generator().manual_seed(0)  # synthetic input: no patient, no secret
    side = study.reconstruction.crop_px or study.data.image_size
    known = torch.rand(7, INPUTS + 1, side, side, generator=generator) * 255
    most = images_at_once(
        joint, parameters, torch.rand(2, INPUTS + 1, side, side, generator=generator).to(device) * 255
    )
    engine = checked_engine(
        joint,
        parameters,
        loss_of_image,
        Sample(images_N=known.to(device), outputs=1, images_per_unit=plan.images_per_patient),
        plan.max_grad_norm,
        speed=speed_of(plan, precision, most),
        memory=memory,
    )
    return SpeedPlan(engine=engine, images_per_batch=images_per_batch(plan, most))


@torch.no_grad()
def restored(network: nn.Module, degradation: Degradation, images_N1HW: np.ndarray, device: torch.device) -> Tensor:
    """Known images degraded, each by numbers of its own, and restored: 8-bit grey values (N, 1, H, W)."""
    parts = []
    for image in images_N1HW:
        true = torch.from_numpy(np.array(image[None])).to(device)
        inputs = inputs_of_degraded(degrade(true, degradation, numbers_of(image)), degradation)
        parts.append(to_8_bit(network(inputs)).cpu())
    return torch.cat(parts) if parts else torch.empty(0, 1, 1, 1)


def held_out_scores(
    network: nn.Module, study: Study, weights: dict[str, np.ndarray], held_out: HeldOutImages, device: torch.device
) -> tuple[np.ndarray, np.ndarray]:
    """By how many dB the model restores each held-out patient's images better than its public start, (P,), the mean
    over the patient's images; and no for everyone, (P,). What the accept test counts.

    Each patient's score depends on that patient's images alone, and is the same whenever it is asked for.
    """
    start = initial_network(study).to(device).eval()
    network = network.to(device).eval()
    load_weights(trained_parameters(network, study), weights)
    degradation = degradation_of(study.reconstruction)
    patients = np.unique(held_out.patient_N)
    gain_P = np.empty(len(patients))

    def gain_of(image_1HW: np.ndarray) -> float:
        true = torch.from_numpy(image_1HW[None])
        after, before = (psnr_db(restored(one, degradation, image_1HW[None], device), true) for one in (network, start))
        return float(after - before)

    for place, patient in enumerate(patients):
        rows = np.flatnonzero(held_out.patient_N == patient)
        gain_P[place] = score_or_nan(
            lambda rows=rows: float(np.mean([gain_of(held_out.images_NCHW[row]) for row in rows]))
        )
    return gain_P, np.zeros(len(patients), dtype=bool)
