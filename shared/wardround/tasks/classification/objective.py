"""The objective of classification: cross-entropy, over images or, if only the head trains, over frozen features."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from wardround.networks.weights import trained_parameters
from wardround.sources.images.study import image_data
from wardround.study.load import Study
from wardround.tasks.augmentation import augmentation
from wardround.tasks.label_scores import has_positive_label, highest_logit, labelled_rows
from wardround.tasks.objective import Objective, StepTools

FEATURE_ROWS = 64  # in one pass; rows of features are cheap

usable_rows = labelled_rows
is_positive = has_positive_label
patient_score = highest_logit


def reads_features(study: Study) -> bool:
    """Return whether training reads frozen features instead of images.

    This is the case if only the head trains and there is no augmentation.
    """
    return study.model.trainable == "head" and study.training.augmentation == "none"


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


def objective_of(network: nn.Module, study: Study, tools: StepTools) -> Objective:
    """Return cross-entropy as the objective of the trained part."""
    part = trained_part(network, study)
    parameters = trained_parameters(network, study)
    local = {name.removeprefix("head.") if part is not network else name: p for name, p in parameters.items()}

    def sample() -> Tensor:
        generator = torch.Generator().manual_seed(0)  # synthetic input, neither patient data nor secret
        if reads_features(study):
            return torch.randn(7, head_of(network).in_features, generator=generator).to(tools.device)
        size = (7, *image_data(study).shape_CHW)
        return torch.randint(0, 256, size, generator=generator, dtype=torch.uint8).to(tools.device)

    return Objective(
        part=part,
        parameters=local,
        loss_per_image=loss_per_image,
        augment=augmentation(study, tools.draws),
        sample=sample,
        outputs=head_of(network).out_features,
        rows_at_once=FEATURE_ROWS if reads_features(study) else None,
    )
