"""The scores that a model gives to this site's held-out patients. They stay at the site.

Shapes: N images, P patients, K labels.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from wardround.metrics.calibration import Calibration
from wardround.metrics.classification import TestFigures, patient_scores, probabilities, summary
from wardround.metrics.intervals import Estimate, auc_difference
from wardround.metrics.subgroups import Scored
from wardround_client.training.batches import HeldOutRows

IMAGES_AT_ONCE = 64


def scored(
    network: nn.Module, held_out: HeldOutRows, device: torch.device, calibration: Calibration | None = None
) -> Scored:
    """Return the scores that a network, from rows to logits, gives to held-out rows.

    A network with several outputs for one label has a method `label_logits` that gives the one that counts.
    `calibration` applies to two labels only.
    """
    network = network.to(device).eval()
    logits_of = getattr(network, "label_logits", network)
    parts = []
    with torch.no_grad():
        for begin in range(0, len(held_out.labels_N), IMAGES_AT_ONCE):
            rows = torch.from_numpy(np.array(held_out.values_N[begin : begin + IMAGES_AT_ONCE])).to(device)
            parts.append(logits_of(rows).float().cpu().numpy())
    logits_NK = np.concatenate(parts) if parts else np.empty((0, 1))
    calibrated = calibration is not None and logits_NK.shape[1] == 1
    return Scored(
        scores=probabilities(logits_NK),
        labels_N=held_out.labels_N,
        patients_N=held_out.patient_N,
        calibrated_N=calibration.probability(logits_NK[:, 0]) if calibration is not None and calibrated else None,
    )


def figures_of(rows: Scored) -> TestFigures:
    """Return the figures of one model: by patient for two labels (the highest score counts), by image for more."""
    return summary(rows.scores, rows.labels_N, rows.patients_N, "patient" if rows.scores.ndim == 1 else "slice")


def difference(first: Scored, second: Scored) -> Estimate | None:
    """Return the AUC of `first` minus that of `second` on the same rows, counted as in `figures_of`."""
    if first.scores.ndim == 2 or not len(first.labels_N):
        return auc_difference(first.scores, second.scores, first.labels_N, first.patients_N)
    one_P, labels_P, patients_P = patient_scores(first.scores, first.labels_N, first.patients_N)
    other_P = patient_scores(second.scores, second.labels_N, second.patients_N)[0]
    return auc_difference(one_P, other_P, labels_P, patients_P)
