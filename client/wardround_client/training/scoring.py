"""Scores of held-out patients: one number each, from that patient's images alone.

Images are passed through the network one at a time. In a batch, the number of other images can change the last digit of
a score and so move it to another bin; a release would then depend on more patients than its guarantee states. If a
patient's images cannot be scored, that patient's score is NaN, and no other patient's score changes.

Shapes: N images, P patients.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import nn

from wardround.networks.weights import load_weights, trained_parameters
from wardround.study.load import Study
from wardround.tasks.registry import objective_part
from wardround_client.sources.cohort import Rows
from wardround_client.training.batches import HeldOutRows

log = logging.getLogger(__name__)


def held_out_scores(
    network: nn.Module, study: Study, weights: dict[str, np.ndarray], held_out: HeldOutRows, device: torch.device
) -> tuple[np.ndarray, np.ndarray]:
    """Return each held-out patient's score, float64 (P,), and class, bool (P,), by ascending patient.

    The task defines both. They are the input for binning, noise, charge and release.
    """
    task = objective_part(study.study.task)
    network = network.to(device).eval()
    load_weights(trained_parameters(network, study), weights)
    patients = np.unique(held_out.patient_N)
    scores_P, positive_P = np.empty(len(patients)), np.empty(len(patients), dtype=bool)
    with torch.no_grad():
        score_of = task.patient_score(network, study, device)
        for place, patient in enumerate(patients):
            rows = np.flatnonzero(held_out.patient_N == patient)
            images = Rows(held_out.values_N, rows)
            scores_P[place] = score_or_nan(partial(score_of, images))
            positive_P[place] = task.is_positive(held_out.labels_N[rows])
    return scores_P, positive_P


def score_or_nan(score: Callable[[], float]) -> float:
    """Return a patient's score, or NaN if computing it raises an error.

    The site's log records the error in full.
    """
    try:
        return float(score())
    except Exception:
        log.exception("a held-out patient could not be scored and counts in the first bin")
        return math.nan
