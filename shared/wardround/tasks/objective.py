"""What a task asks a site's training loop to minimise.

A task describes its loss; the loop (`wardround_client.training.train`) draws patients, clips, adds noise, steps and
accounts. A task's code gets no noise, no optimizer of what patients move, and no ledger.
Shapes: N rows, C channels, H and W pixels, D features, K outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

LossPerImage = Callable[[Tensor, Tensor], Tensor]  # (outputs_NK, labels_N) -> loss_N, each of its own row alone
Augmentation = Callable[[Tensor], Tensor]  # rows of one patient, as read -> the rows that the loss sees


class Draws(Protocol):
    """A source of random numbers: a site's `SecretRandom`, or numbers that a test can draw again."""

    def words(self, count: int) -> np.ndarray:
        """`count` uniform 64-bit words."""

    def uniform(self, count: int) -> np.ndarray:
        """`count` uniform float64 in [0, 1)."""

    def normal(self, count: int) -> Tensor:
        """`count` standard normal float32."""


class ClippedMean(Protocol):
    """The mean over rows of each row's gradient, clipped to the plan's norm: for rows that are no patient's."""

    def __call__(
        self,
        part: nn.Module,
        parameters: dict[str, nn.Parameter],
        inputs_N: Tensor,
        labels_N: Tensor,
        loss_per_image: LossPerImage,
    ) -> dict[str, Tensor]: ...


@dataclass(frozen=True, kw_only=True)
class StepTools:
    """What the loop lends to a task."""

    draws: Draws
    device: torch.device
    clipped_mean: ClippedMean


@dataclass(frozen=True, kw_only=True)
class Objective:
    """A task's loss over patients.

    Guarantee that the loop gives: patients move `parameters` through clipped, noised sums of `loss_per_image` alone.
    Guarantee that the task gives: `after_noise` and `after_round` read no patient, only weights, public numbers and
    draws; then both are post-processing of what was noised.
    """

    part: nn.Module  # what the patients' gradients run through
    parameters: dict[str, nn.Parameter]  # what patients move, by name in `part`
    loss_per_image: LossPerImage
    augment: Augmentation
    sample: Callable[[], Tensor]  # synthetic rows as `part` reads them, on which clipping is proved; no patient's
    outputs: int  # of `part`, for a synthetic row's label
    rows_at_once: int | None = None  # in one pass of the clipping engine; None: as many as the memory allows
    pulled_to_start: bool = True  # whether FedProx pulls `parameters` to the weights received
    after_noise: Callable[[], None] | None = None  # may add to the noised gradients, in each step
    after_round: Callable[[], None] | None = None  # may move other weights, after the round's noisy steps


def rows_as_read(rows_N: Tensor) -> Tensor:
    """The augmentation that changes nothing."""
    return rows_N
