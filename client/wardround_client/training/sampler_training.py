"""The phantom sampler's local steps: one clip over both heads, one noise, and the public phantoms' side after it.

A patient's loss is the label's cross-entropy, less `realness_weight` times realness, averaged over their images. The
phantoms' side is the log of the odds' sum over the public bank (the dual of M. Donsker and S. Varadhan's formula): its
gradient is the mean of the phantoms as they are kept now, known without noise. Shapes: N rows, D features.

Guarantee: the patients' gradients over both heads together are clipped to C, summed and noised as in `noise.py`: one
Gaussian event a step. The phantoms' term is added after the noise and reads no patient.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from wardround.networks.phantom_encoder import PUBLIC_FEATURES
from wardround.study.load import Study
from wardround.tasks.synthesis.phantom_sampler import LABELS, PhantomSampler
from wardround_client.clipping.bookkeeping import Precision
from wardround_client.clipping.engines import LossPerImage
from wardround_client.clipping.select import EngineMemory, Sample, checked_engine, speed_of
from wardround_client.privacy.plan import PrivacyPlan
from wardround_client.privacy.secure_random import SecretRandom
from wardround_client.training.batches import Material, SpeedPlan
from wardround_client.training.steps import PatientsTerm, take_noisy_steps
from wardround_client.training.weights import load_weights, trained_parameters, weights_of

FEATURE_ROWS = 32  # in one pass: rows of 33 numbers cost nothing


def loss_of(realness_weight: float) -> LossPerImage:
    """The patients' side of the loss, by image: (outputs_N2, labels_N) -> (N,)."""

    def loss_per_image(outputs_N2: Tensor, labels_N: Tensor) -> Tensor:
        logits_N, realness_N = outputs_N2.unbind(1)
        label = functional.binary_cross_entropy_with_logits(logits_N, labels_N.to(logits_N.dtype), reduction="none")
        return label - realness_weight * realness_N

    return loss_per_image


def phantoms_gradient(network: PhantomSampler, realness_weight: float) -> Tensor:
    """Gradient (1, D) of the phantoms' side for the weights of realness. A function of public numbers and weights."""
    with torch.no_grad():
        return realness_weight * network.mean_of_kept()


def train(
    study: Study,
    plan: PrivacyPlan,
    network: PhantomSampler,
    weights: dict[str, np.ndarray],
    material: Material,
    round_: int,
    randomness: SecretRandom,
    device: torch.device,
    speed: SpeedPlan | None,
) -> dict[str, np.ndarray]:
    """One round of both heads; see `synthesis.train`."""
    parameters = trained_parameters(network, study)
    load_weights(parameters, weights)
    term = PatientsTerm(
        part=network.head,
        parameters=_by_head(parameters),
        loss_per_image=loss_of(study.synthesis.realness_weight),
        augment=lambda features_ND: features_ND,
    )

    def add_phantoms() -> None:
        realness = network.head.realness.weight
        realness.grad.add_(phantoms_gradient(network, study.synthesis.realness_weight))

    take_noisy_steps(study, plan, term, material, round_, randomness, device, speed, add_phantoms)
    return weights_of(parameters)


def plan_speed(
    network: PhantomSampler,
    study: Study,
    plan: PrivacyPlan,
    device: torch.device,
    memory: EngineMemory | None,
    precision: Precision,
) -> SpeedPlan:
    """The engine for both heads, held against the loop; see `synthesis.plan_speed`."""
    generator = torch.Generator().manual_seed(0)  # synthetic input: no patient, no secret
    features_ND = torch.randn(7, PUBLIC_FEATURES, generator=generator).to(device)
    engine = checked_engine(
        network.head,
        _by_head(trained_parameters(network, study)),
        loss_of(study.synthesis.realness_weight),
        Sample(images_N=features_ND, outputs=LABELS, images_per_unit=plan.images_per_patient),
        plan.max_grad_norm,
        speed=speed_of(plan, precision, FEATURE_ROWS),
        memory=memory,
    )
    return SpeedPlan(engine=engine)


def _by_head(parameters: dict[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    return {name.removeprefix("head."): parameter for name, parameter in parameters.items()}
