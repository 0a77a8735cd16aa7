"""The scores that a classifier with given weights gives to known rows. Shapes: N rows, K labels."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from wardround.metrics.classification import probabilities
from wardround.networks.weights import load_weights, trained_parameters
from wardround.study.load import Study
from wardround.tasks.assessment import Rows, Weights
from wardround.tasks.labelled.objective import trained_part

AT_ONCE = 256
CPU = torch.device("cpu")


def score(network: nn.Module, study: Study, weights: Weights, inputs_N: Rows, device: torch.device = CPU) -> np.ndarray:
    """Probability of the positive label for each input, (N,); with more than two labels (N, K).

    A network with several outputs for one label has a method `label_logits` that gives the one that counts.
    """
    network = network.to(device).eval()
    load_weights(trained_parameters(network, study), weights)
    part = trained_part(network, study)
    logits_of = getattr(part, "label_logits", part)
    parts = []
    with torch.no_grad():
        for begin in range(0, len(inputs_N), AT_ONCE):
            chunk = torch.from_numpy(np.array(inputs_N[begin : begin + AT_ONCE])).to(device)
            parts.append(logits_of(chunk).float().cpu().numpy())
    return probabilities(np.concatenate(parts)) if parts else np.empty(0)
