"""The phantom sampler: one clip over both heads, one noise, and the public phantoms' side after it.

A patient's loss is the label's cross-entropy, less `realness_weight` times realness, averaged over their images. The
phantoms' side is the log of the odds' sum over the public bank (the dual of M. Donsker and S. Varadhan's formula): its
gradient is the mean of the phantoms as they are kept now, known without noise. Shapes: N rows, D features.

Guarantee: the phantoms' term is added after the noise and reads no patient.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from wardround.errors import required
from wardround.networks.phantom_encoder import PUBLIC_FEATURES
from wardround.networks.weights import trained_parameters
from wardround.study.load import Study
from wardround.tasks.objective import LossPerImage, Objective, StepTools, rows_as_read
from wardround.tasks.synthesis.phantom_sampler import LABELS, PhantomSampler
from wardround.tasks.synthesis.study import section_of

FEATURE_ROWS = 32  # in one pass: rows of 33 numbers cost nothing


def objective_of(network: PhantomSampler, study: Study, tools: StepTools) -> Objective:
    """The loss of both heads over patients' features; the phantoms' side after the noise."""
    realness_weight = section_of(study).realness_weight

    def add_phantoms() -> None:
        gradient = required(network.head.realness.weight.grad, "gradient")
        gradient.add_(phantoms_gradient(network, realness_weight))

    def sample() -> Tensor:
        generator = torch.Generator().manual_seed(0)  # synthetic input: no patient, no secret
        return torch.randn(7, PUBLIC_FEATURES, generator=generator).to(tools.device)

    return Objective(
        part=network.head,
        parameters={name.removeprefix("head."): p for name, p in trained_parameters(network, study).items()},
        loss_per_image=loss_of(realness_weight),
        augment=rows_as_read,
        sample=sample,
        outputs=LABELS,
        rows_at_once=FEATURE_ROWS,
        pulled_to_start=False,  # FedProx has never pulled the sampler
        after_noise=add_phantoms,
    )


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
