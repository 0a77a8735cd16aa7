"""The loss and the trained part of a classifier: cross-entropy, over rows or over their frozen features."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn
from torch.nn import functional

from wardround.study.load import Study
from wardround.tasks.registry import objective_part

FEATURE_ROWS = 64  # in one pass; rows of features are cheap
WHOLE_STEPS = 64  # numbers; a multiple of what any processor's vector instructions take at once


def reads_features(study: Study) -> bool:
    """Return whether training of the study's task reads frozen features instead of rows."""
    return objective_part(study.study.task).reads_features(study)


def head_of(network: nn.Module) -> nn.Linear:
    """Return the last layer, which is called `head` in every classifier."""
    return cast(nn.Linear, network.head)


def trained_part(network: nn.Module, study: Study) -> nn.Module:
    """Return the module that is trained: the head if training reads frozen features, else the whole network."""
    return head_of(network) if reads_features(study) else network


def binary_losses(logits_NT: Tensor, labels_N: Tensor) -> Tensor:
    """Return the binary cross-entropy of each row's logits with the row's label, 0 or 1, (N, T).

    A row's losses and gradients have the same bits whatever its place among the rows. torch computes the numbers of a
    tensor in vectors, and those that are left at its end by other instructions, which round a sigmoid differently. Each
    row is therefore padded to whole vectors.
    """
    logits_NP = functional.pad(logits_NT, (0, -logits_NT.shape[1] % WHOLE_STEPS))
    labels_NP = labels_N.to(logits_NT.dtype)[:, None].expand_as(logits_NP).contiguous()
    losses_NP = functional.binary_cross_entropy_with_logits(logits_NP, labels_NP, reduction="none")
    return losses_NP[:, : logits_NT.shape[1]]


def loss_per_row(logits_NK: Tensor, labels_N: Tensor) -> Tensor:
    """Return the losses, (N,): binary cross-entropy for one output, cross-entropy for more."""
    if logits_NK.shape[1] == 1:
        return binary_losses(logits_NK, labels_N)[:, 0]
    return functional.cross_entropy(logits_NK, labels_N, reduction="none")
