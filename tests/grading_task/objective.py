"""Grading: the squared error of the predicted grade."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor, nn

from wardround.networks.weights import trained_parameters
from wardround.sources.images.study import image_data
from wardround.study.load import Study
from wardround.tasks.augmentation import augmentation
from wardround.tasks.labelled.rows import labelled_rows
from wardround.tasks.objective import Objective, StepTools

usable_rows = labelled_rows


def reads_features(study: Study) -> bool:
    """No: the whole network trains on images."""
    return False


def squared_error(grades_N1: Tensor, labels_N: Tensor) -> Tensor:
    """(N,) losses; each depends on its own image alone."""
    return (grades_N1[:, 0] - labels_N.to(grades_N1.dtype)).square()


def objective_of(network: nn.Module, study: Study, tools: StepTools) -> Objective:
    """The squared error over all that trains."""

    def sample() -> Tensor:
        generator = torch.Generator().manual_seed(0)  # synthetic input: no patient, no secret
        size = (7, *image_data(study).shape_CHW)
        return torch.randint(0, 256, size, generator=generator, dtype=torch.uint8).to(tools.device)

    return Objective(
        part=network,
        parameters=trained_parameters(network, study),
        loss_per_row=squared_error,
        augment=augmentation(study, tools.draws),
        sample=sample,
        outputs=1,
    )


def patient_score(network: nn.Module, study: Study, device: torch.device) -> Callable[[Iterable[np.ndarray]], float]:
    """A patient's score: the mean grade of their images."""

    def score(images_nCHW: Iterable[np.ndarray]) -> float:
        grades = [float(network(torch.from_numpy(image_CHW[None]).to(device))) for image_CHW in images_nCHW]
        return float(np.mean(grades))

    return score


def is_positive(labels_n: np.ndarray) -> bool:
    """Grades have no positive class."""
    return False
