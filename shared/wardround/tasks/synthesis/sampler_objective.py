"""The objective of the phantom sampler: one clip and one noise over both heads, then the public phantoms' term.

A patient's loss is the label's cross-entropy minus `realness_weight` times realness, averaged over the patient's
images. The phantoms' term is the log of the sum of the odds over the public bank (the dual of M. Donsker and
S. Varadhan's formula). Its gradient is the mean of the phantoms with their current odds, which is known without noise.

Guarantee: the phantoms' term is added after the noise and reads no patient data.

Shapes: N rows, D features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wardround.errors import required
from wardround.networks.phantom_encoder import PUBLIC_FEATURES
from wardround.networks.weights import trained_parameters
from wardround.study.load import Study
from wardround.tasks.labelled.objective import binary_losses
from wardround.tasks.objective import LossPerRow, Objective, StepTools, rows_as_read
from wardround.tasks.synthesis.phantom_sampler import LABELS, PhantomSampler
from wardround.tasks.synthesis.study import section_of

FEATURE_ROWS = 32  # in one pass; rows of 33 numbers cost almost nothing


def objective_of(network: PhantomSampler, study: Study, tools: StepTools) -> Objective:
    """Return the loss of both heads over patients' features as the objective.

    The phantoms' term is added after the noise.
    """
    realness_weight = section_of(study).realness_weight

    def add_phantoms() -> None:
        gradient = required(network.head.realness.weight.grad, "gradient")
        gradient.add_(phantoms_gradient(network, realness_weight))

    def sample() -> Tensor:
        generator = torch.Generator().manual_seed(0)  # synthetic input, neither patient data nor secret
        return torch.randn(7, PUBLIC_FEATURES, generator=generator).to(tools.device)

    return Objective(
        part=network.head,
        parameters={name.removeprefix("head."): p for name, p in trained_parameters(network, study).items()},
        loss_per_row=loss_of(realness_weight),
        augment=rows_as_read,
        sample=sample,
        outputs=LABELS,
        rows_at_once=FEATURE_ROWS,
        pulled_to_start=False,  # FedProx does not apply to the sampler
        after_noise=add_phantoms,
    )


def loss_of(realness_weight: float) -> LossPerRow:
    """Return the patients' term of the loss per row: (outputs_N2, labels_N) -> (N,)."""

    def loss_per_row(outputs_N2: Tensor, labels_N: Tensor) -> Tensor:
        return binary_losses(outputs_N2[:, :1], labels_N)[:, 0] - realness_weight * outputs_N2[:, 1]

    return loss_per_row


def phantoms_gradient(network: PhantomSampler, realness_weight: float) -> Tensor:
    """Return the gradient (1, D) of the phantoms' term for the weights of realness.

    It is a function of public numbers and weights only.
    """
    with torch.no_grad():
        return realness_weight * network.mean_of_kept()
