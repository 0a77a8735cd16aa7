"""The loss and the trained part of a classifier: cross-entropy, over rows or over their frozen features."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn
from torch.nn import functional

from wardround.study.load import Study
from wardround.tasks.registry import objective_part

FEATURE_ROWS = 64  # in one pass; rows of features are cheap


def reads_features(study: Study) -> bool:
    """Return whether training of the study's task reads frozen features instead of rows."""
    return objective_part(study.study.task).reads_features(study)


def head_of(network: nn.Module) -> nn.Linear:
    """Return the last layer, which is called `head` in every classifier."""
    return cast(nn.Linear, network.head)


def trained_part(network: nn.Module, study: Study) -> nn.Module:
    """Return the module that is trained: the head if training reads frozen features, else the whole network."""
    return head_of(network) if reads_features(study) else network


def loss_per_image(logits_NK: Tensor, labels_N: Tensor) -> Tensor:
    """Return the losses, (N,): binary cross-entropy for one output, cross-entropy for more."""
    if logits_NK.shape[1] == 1:
        return functional.binary_cross_entropy_with_logits(
            logits_NK[:, 0], labels_N.to(logits_NK.dtype), reduction="none"
        )
    return functional.cross_entropy(logits_NK, labels_N, reduction="none")
