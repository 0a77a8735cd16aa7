"""Scores of held-out patients. Each counts once: the highest of their images' scores, positive if any label is.

Images go through the network one at a time. In a batch the others' number can change the last digit of a score, and so
move it to another bin: a release would then depend on more patients than its guarantee says. And where a patient's
images cannot be scored, that patient's score is not a number, and nobody else's changes.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from wardround.study.load import Study
from wardround_client.training.batches import HeldOutImages
from wardround_client.training.weights import load_weights, trained_parameters

log = logging.getLogger(__name__)


def patient_logits(
    network: nn.Module, study: Study, weights: dict[str, np.ndarray], held_out: HeldOutImages, device: torch.device
) -> tuple[np.ndarray, np.ndarray]:
    """Logits (P,) float64 and whether any label is positive (P,), by ascending patient, of a network with one output,
    or with a method `label_logits` that gives one.

    A patient with an image whose logit is not a number, or cannot be computed, has a score that is not a number.
    """
    network = network.to(device).eval()
    load_weights(trained_parameters(network, study), weights)
    logits_of = getattr(network, "label_logits", network)
    patients = np.unique(held_out.patient_N)
    logits_P, positive_P = np.empty(len(patients)), np.empty(len(patients), dtype=bool)
    with torch.no_grad():
        for place, patient in enumerate(patients):
            rows = np.flatnonzero(held_out.patient_N == patient)
            logits_P[place] = score_or_nan(
                lambda rows=rows: np.max(
                    [float(logits_of(torch.from_numpy(held_out.images_NCHW[row][None]).to(device))) for row in rows]
                )
            )
            positive_P[place] = bool((held_out.labels_N[rows] == 1).any())
    return logits_P, positive_P


def score_or_nan(score: Callable[[], float]) -> float:
    """A patient's score; not a number where computing it raises, which the site's log has in full."""
    try:
        return float(score())
    except Exception:
        log.exception("a held-out patient could not be scored and counts in the first bin")
        return math.nan
