"""What tasks with labels share: which rows have one, and a held-out patient's score for the second label."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import nn

from wardround.study.load import Study


def labelled_rows(study: Study, labels_N: np.ndarray) -> np.ndarray:
    """Rows with a label, bool (N,)."""
    return labels_N >= 0


def has_positive_label(labels_n: np.ndarray) -> bool:
    """Whether any of a patient's images has the second label."""
    return bool((labels_n == 1).any())


def highest_logit(network: nn.Module, study: Study, device: torch.device) -> Callable[[Iterable[np.ndarray]], float]:
    """A patient's score: the highest logit of their images, uint8 (n, C, H, W), which go through one at a time.

    The network has one output, or a method `label_logits` that gives one. The score of a patient with an image whose
    logit is not a number is not a number.
    """
    logits_of = getattr(network, "label_logits", network)

    def score(images_nCHW: Iterable[np.ndarray]) -> float:
        return float(
            np.max([float(logits_of(torch.from_numpy(image_CHW[None]).to(device))) for image_CHW in images_nCHW])
        )

    return score
