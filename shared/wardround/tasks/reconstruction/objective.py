"""The objective of reconstruction: a conditional GAN that restores degraded images.

A patient's images are degraded here, on the fly, with the site's secret random numbers. Neither these numbers nor the
degraded images are stored. A patient's gradient is that of generator and discriminator together (`loss.py`), so that
one clip bounds both and one noise covers both: one step, one event.

Shapes: N images, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from wardround.networks.build import initial_network
from wardround.networks.weights import trained_parameters
from wardround.sources.images.study import image_data
from wardround.study.load import Study
from wardround.tasks.augmentation import augmentation
from wardround.tasks.objective import Augmentation, Draws, Objective, StepTools
from wardround.tasks.reconstruction.degradations import Degradation, degradation_of, degrade, numbers_of
from wardround.tasks.reconstruction.image_quality import psnr_db, to_8_bit
from wardround.tasks.reconstruction.loss import JointLoss, LossWeights, loss_of_image
from wardround.tasks.reconstruction.restorer import INPUTS, Restorer, inputs_of_degraded
from wardround.tasks.reconstruction.study import section_of


def usable_rows(study: Study, labels_N: np.ndarray) -> np.ndarray:
    """Return all rows, bool (N,), because restoration needs no label."""
    return np.ones(len(labels_N), dtype=bool)


def reads_features(study: Study) -> bool:
    """Return False: images are degraded anew in every step."""
    return False


def objective_of(network: nn.Module, study: Study, tools: StepTools) -> Objective:
    """Return the joint loss of generator and discriminator over degraded images as the objective."""
    side = section_of(study).crop_px or image_data(study).image_size

    def sample() -> Tensor:
        generator = torch.Generator().manual_seed(0)  # synthetic input, neither patient data nor secret
        return (torch.rand(7, INPUTS + 1, side, side, generator=generator) * 255).to(tools.device)

    return Objective(
        part=joint_loss(network, study),
        parameters=trained_parameters(network, study),
        loss_per_row=loss_of_image,
        augment=degrading(study, tools.draws),
        sample=sample,
        outputs=1,
    )


def joint_loss(network: nn.Module, study: Study) -> JointLoss:
    """Return the network with the study's loss per row, as the module that the clipping engines run."""
    section = section_of(study)
    weights = LossWeights(adversarial=section.adversarial_weight, ssim=section.ssim_weight)
    return JointLoss(cast(Restorer, network), weights)


def degrading(study: Study, draws: Draws) -> Augmentation:
    """Return the augmentation that degrades drawn images.

    It maps images (N, 1, H, W), uint8, to the generator's inputs and the true image, (N, 4, h, w), float32. Each image
    is treated by itself: a random crop, the study's flips, the degradation and its classical start.
    """
    degradation, crop_px = degradation_of(section_of(study)), section_of(study).crop_px
    flips = augmentation(study, draws)

    @torch.no_grad()
    def degraded(images_N1HW: Tensor) -> Tensor:
        true_N1HW = flips(cropped(images_N1HW, crop_px, draws)).float()
        return torch.cat([inputs_of_degraded(degrade(true_N1HW, degradation, draws), degradation), true_N1HW], 1)

    return degraded


def cropped(images_N1HW: Tensor, crop_px: int, draws: Draws) -> Tensor:
    """Crop a square of `crop_px` pixels at a random place in each image; with 0 return the images unchanged."""
    rows, columns = images_N1HW.shape[-2:]
    if not crop_px or (rows, columns) == (crop_px, crop_px):
        return images_N1HW
    place_N2 = draws.uniform(2 * len(images_N1HW)).reshape(-1, 2)
    out = images_N1HW.new_empty(len(images_N1HW), images_N1HW.shape[1], crop_px, crop_px)
    for image, (down, right) in enumerate(place_N2):
        top, left = int(down * (rows - crop_px + 1)), int(right * (columns - crop_px + 1))
        out[image] = images_N1HW[image, :, top : top + crop_px, left : left + crop_px]
    return out


@torch.no_grad()
def restored(network: nn.Module, degradation: Degradation, images_N1HW: np.ndarray, device: torch.device) -> Tensor:
    """Degrade known images and restore them; returns 8-bit grey values (N, 1, H, W).

    Each image is degraded with random numbers that depend only on that image.
    """
    parts = []
    for image in images_N1HW:
        true = torch.from_numpy(np.array(image[None])).to(device)
        inputs = inputs_of_degraded(degrade(true, degradation, numbers_of(image)), degradation)
        parts.append(to_8_bit(network(inputs)).cpu())
    return torch.cat(parts) if parts else torch.empty(0, 1, 1, 1)


def patient_score(network: nn.Module, study: Study, device: torch.device) -> Callable[[Iterable[np.ndarray]], float]:
    """Return a function from a patient's images to the patient's score: the mean gain in dB over the public start.

    The gain is the difference of the peak signal-to-noise ratios of the images that the model and its public start
    restore. The accept test counts these scores. A score depends only on that patient's images, and is reproducible.
    """
    start = initial_network(study).to(device).eval()
    degradation = degradation_of(section_of(study))

    def gain_of(image_1HW: np.ndarray) -> float:
        true = torch.from_numpy(image_1HW[None])
        after, before = (psnr_db(restored(one, degradation, image_1HW[None], device), true) for one in (network, start))
        return float(after - before)

    return lambda images_n1HW: float(np.mean([gain_of(image_1HW) for image_1HW in images_n1HW]))


def is_positive(labels_n: np.ndarray) -> bool:
    """Return False: gains have no two classes, so all patients are counted in one."""
    return False
