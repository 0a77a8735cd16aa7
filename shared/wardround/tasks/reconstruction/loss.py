"""The loss of one image in reconstruction, for generator and discriminator together.

The terms of both networks are added to one number, so that one clip covers the concatenated gradient of both:

    loss = |restored - true| + w_ssim (1 - SSIM) + w_adv G + w_adv D

The generator's adversarial term G = -D(restored) has no gradient for the discriminator. The discriminator's hinge loss
D = relu(1 - D(true)) + relu(1 + D(restored)) has none for the generator. Each image's loss depends only on that image.

Shapes: N images, H rows, W columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wardround.tasks.reconstruction.image_quality import ssim
from wardround.tasks.reconstruction.restorer import INPUTS, Restorer

GREY_SCALE = 64.0  # grey levels per unit of the absolute error
VIEWS_OF_AN_IMAGE = 2  # the discriminator evaluates each image twice, side by side: true and restored


@dataclass(frozen=True, kw_only=True)
class LossWeights:
    """Weights of the adversarial and the structural term; public numbers of the study."""

    adversarial: float
    ssim: float


@dataclass(frozen=True, kw_only=True, eq=False)
class LossTerms:
    """The unweighted terms of each image's loss, (N,) each.

    In order: the absolute error in units of `GREY_SCALE`, 1 - SSIM (None if its weight is 0), the generator's
    adversarial term, and the discriminator's hinge loss.
    """

    error_N: Tensor
    dissimilarity_N: Tensor | None
    fooled_N: Tensor
    told_apart_N: Tensor


class JointLoss(nn.Module):
    """Inputs and true image (N, 4, H, W) in grey values -> the loss of each image (N, 1)."""

    def __init__(self, restorer: Restorer, weights: LossWeights) -> None:
        super().__init__()
        self.restorer = restorer
        self.weights = weights

    def forward(self, both_N4HW: Tensor) -> Tensor:
        """(N, 4, H, W): the three inputs of the generator, then the true image -> (N, 1)."""
        terms = self.terms(both_N4HW)
        loss_N = terms.error_N
        if terms.dissimilarity_N is not None:
            loss_N = loss_N + self.weights.ssim * terms.dissimilarity_N
        return (loss_N + self.weights.adversarial * (terms.fooled_N + terms.told_apart_N))[:, None]

    def terms(self, both_N4HW: Tensor) -> LossTerms:
        """Return the terms that `forward` weights and adds, for the same (N, 4, H, W)."""
        inputs_N3HW, true_N1HW = both_N4HW[:, :INPUTS], both_N4HW[:, INPUTS:]
        start_N1HW = inputs_N3HW[:, 1:2]
        restored = self.restorer.generator(inputs_N3HW)
        error_N = ((restored - true_N1HW) / GREY_SCALE).abs().float().flatten(1).mean(1)
        dissimilarity_N = 1 - ssim(restored.float(), true_N1HW.float()) if self.weights.ssim > 0 else None
        judge = self.restorer.discriminator
        seen = torch.cat([restored, start_N1HW], 1)
        fooled_N = -judge.frozen(seen).float().flatten(1).mean(1)
        pairs = torch.stack([torch.cat([true_N1HW, start_N1HW], 1), seen.detach()], 1)  # (N, 2, 2, H, W)
        logits_N2 = judge(pairs.flatten(0, 1)).float().unflatten(0, (-1, VIEWS_OF_AN_IMAGE))
        signs = logits_N2.new_tensor([1.0, -1.0]).view(1, VIEWS_OF_AN_IMAGE, 1, 1, 1)
        told_apart_N = F.relu(1 - signs * logits_N2).flatten(1).mean(1) * VIEWS_OF_AN_IMAGE
        return LossTerms(error_N=error_N, dissimilarity_N=dissimilarity_N, fooled_N=fooled_N, told_apart_N=told_apart_N)


def loss_of_image(losses_N1: Tensor, _: Tensor) -> Tensor:
    """Return the output of `JointLoss` as the loss per row for a clipping engine, (N,). Labels are not used."""
    return losses_N1[:, 0]
