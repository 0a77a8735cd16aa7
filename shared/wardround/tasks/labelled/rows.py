"""Functions shared by tasks with labels: the rows with a label, and a held-out patient's score."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import nn

from wardround.study.load import Study


def labelled_rows(study: Study, labels_N: np.ndarray) -> np.ndarray:
    """Return which rows have a label, bool (N,)."""
    return labels_N >= 0


def has_positive_label(labels_n: np.ndarray) -> bool:
    """Return whether any of a patient's images has the second label."""
    return bool((labels_n == 1).any())


def highest_logit(network: nn.Module, study: Study, device: torch.device) -> Callable[[Iterable[np.ndarray]], float]:
    """Return a function from a patient's images, uint8 (n, C, H, W), to the patient's score, their highest logit.

    The images pass through the network one at a time. The network has one output, or a method `label_logits` with one.
    If the logit of one image is NaN, the patient's score is NaN.
    """
    logits_of = getattr(network, "label_logits", network)

    def score(images_nCHW: Iterable[np.ndarray]) -> float:
        return float(
            np.max([float(logits_of(torch.from_numpy(image_CHW[None]).to(device))) for image_CHW in images_nCHW])
        )

    return score
