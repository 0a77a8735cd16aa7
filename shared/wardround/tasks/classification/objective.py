"""The objective of classification: cross-entropy, over images or, if only the head trains, over frozen features."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wardround.networks.weights import trained_parameters
from wardround.sources.images.study import image_data
from wardround.study.load import Study
from wardround.tasks.augmentation import augmentation
from wardround.tasks.labelled.objective import FEATURE_ROWS, head_of, loss_per_row, trained_part
from wardround.tasks.labelled.rows import has_positive_label, highest_logit, labelled_rows
from wardround.tasks.objective import Objective, StepTools

usable_rows = labelled_rows
is_positive = has_positive_label
patient_score = highest_logit


def reads_features(study: Study) -> bool:
    """Return whether training reads frozen features instead of images.

    This is the case if only the head trains and there is no augmentation.
    """
    return study.model.trainable == "head" and study.training.augmentation == "none"


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
        loss_per_row=loss_per_row,
        augment=augmentation(study, tools.draws),
        sample=sample,
        outputs=head_of(network).out_features,
        rows_at_once=FEATURE_ROWS if reads_features(study) else None,
    )
