"""The objective of a task: the loss that a site's training loop minimises.

A task describes its loss. The loop (`wardround_client.training.train`) draws patients, clips, adds noise, steps and
accounts. A task's code has no access to the noise, to the optimizer of the parameters that patients move, or to the
ledger.

Shapes: N rows, C channels, H and W pixels, D features, K outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

# (outputs_NK, labels_N) -> loss_N; each loss depends on its own row only
LossPerRow = Callable[[Tensor, Tensor], Tensor]
Augmentation = Callable[[Tensor], Tensor]  # one patient's rows, as read -> the rows that enter the loss


class Draws(Protocol):
    """A source of random numbers: a site's `SecretRandom`, or reproducible numbers for tests."""

    def words(self, count: int) -> np.ndarray:
        """Draw `count` uniform 64-bit words."""

    def uniform(self, count: int) -> np.ndarray:
        """Draw `count` uniform float64 in [0, 1)."""

    def normal(self, count: int) -> Tensor:
        """Draw `count` standard normal float32."""


class ClippedMean(Protocol):
    """The mean over rows of each row's gradient, clipped to the plan's norm. For rows that belong to no patient."""

    def __call__(
        self,
        part: nn.Module,
        parameters: dict[str, nn.Parameter],
        inputs_N: Tensor,
        labels_N: Tensor,
        loss_per_row: LossPerRow,
    ) -> dict[str, Tensor]: ...


@dataclass(frozen=True, kw_only=True)
class StepTools:
    """Tools that the loop provides to a task."""

    draws: Draws
    device: torch.device
    clipped_mean: ClippedMean


@dataclass(frozen=True, kw_only=True)
class Objective:
    """A task's loss over patients.

    Guarantee of the loop: patients move `parameters` only through clipped, noised sums of `loss_per_row`.
    Guarantee of the task: `after_noise` and `after_round` read no patient data, only weights, public numbers and draws.
    Both are then post-processing of noised values.
    """

    part: nn.Module  # the module through which patients' gradients are computed
    parameters: dict[str, nn.Parameter]  # the parameters that patients move, by name in `part`
    loss_per_row: LossPerRow
    augment: Augmentation
    sample: Callable[[], Tensor]  # synthetic rows in the format that `part` reads, on which clipping is proved
    outputs: int  # number of outputs of `part`, from which synthetic rows' labels are drawn
    rows_at_once: int | None = None  # rows in one pass of the clipping engine; None: as many as the memory allows
    rows_in_a_group: int | None = None  # rows of a group in which the engine works; None: by its own rule, for images
    pulled_to_start: bool = True  # whether FedProx pulls `parameters` to the weights received
    after_noise: Callable[[], None] | None = None  # may add to the noised gradients, in each step
    after_round: Callable[[], None] | None = None  # may move other weights, after the round's noisy steps


def rows_as_read(rows_N: Tensor) -> Tensor:
    """Return the rows unchanged, as the augmentation of a task that has none."""
    return rows_N
