"""The scores that a model gives to this site's held-out patients. They stay at the site.

Shapes: N rows, K labels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from wardround.metrics.classification import Unit, patient_scores, probabilities
from wardround_client.training.batches import HeldOutRows

ROWS_AT_ONCE = 64


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoredRows:
    """Scores of one model: probabilities of the second label (N,), or of each of more labels (N, K).

    With two labels there is one row for each patient, whose score is the highest over the patient's images; with more
    labels there is one row for each image.
    """

    scores: np.ndarray
    labels_N: np.ndarray
    patients_N: np.ndarray

    @property
    def unit(self) -> Unit:
        """What one row is."""
        return "patient" if self.scores.ndim == 1 else "slice"


def scored(network: nn.Module, held_out: HeldOutRows, device: torch.device) -> ScoredRows:
    """Return the scores that a network, from images to logits, gives to held-out rows."""
    network = network.to(device).eval()
    logits = []
    with torch.no_grad():
        for begin in range(0, len(held_out.labels_N), ROWS_AT_ONCE):
            images = torch.from_numpy(np.array(held_out.values_N[begin : begin + ROWS_AT_ONCE])).to(device)
            logits.append(network(images).float().cpu().numpy())
    scores = probabilities(np.concatenate(logits)) if logits else np.empty(0)
    if scores.ndim == 2 or not len(scores):
        return ScoredRows(scores=scores, labels_N=held_out.labels_N, patients_N=held_out.patient_N)
    scores_P, labels_P, patients_P = patient_scores(scores, held_out.labels_N, held_out.patient_N)
    return ScoredRows(scores=scores_P, labels_N=labels_P, patients_N=patients_P)
