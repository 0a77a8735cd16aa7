"""A classifier that has seen synthetic images only: how well it does on real patients is what the images are good for.

The phantom encoder's three layers from random weights, so that nothing it knows comes from elsewhere.
Shapes: N images, C channels, H rows, W columns.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from wardround.networks.public_head import PhantomNetwork
from wardround.tasks.synthesis.image_views import DRAWS, seen

STEPS, BATCH = 200, 64
PEAK_LEARNING_RATE, WEIGHT_DECAY = 4e-3, 0.05
LABEL_SMOOTHING = 0.05
AT_ONCE = 200


def scores_of_classifier(
    images_NCHW: np.ndarray, labels_N: np.ndarray, tested_NCHW: np.ndarray, seed: int
) -> np.ndarray:
    """Train on the images for `STEPS` steps, score `tested_NCHW`: a logit each, (N,). All uint8.

    Flips, quarter turns, AdamW under a one-cycle schedule. The same arguments give the same scores on one machine.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        network = PhantomNetwork()
        with torch.no_grad():
            prepared_N1HW = torch.cat([network.prepare(chunk) for chunk in _chunks(images_NCHW)])
        targets_N1 = torch.from_numpy(labels_N).float()[:, None] * (1 - 2 * LABEL_SMOOTHING) + LABEL_SMOOTHING
        optimizer = torch.optim.AdamW(network.parameters(), PEAK_LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LEARNING_RATE, total_steps=STEPS)
        for _ in range(STEPS):
            rows = torch.randint(0, len(prepared_N1HW), (BATCH,))
            views_N1HW = seen(prepared_N1HW[rows], torch.rand(BATCH, DRAWS), "flips", real=True)
            logits_N1 = network.head(network.pool(views_N1HW))
            loss = functional.binary_cross_entropy_with_logits(logits_N1, targets_N1[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    network.eval()
    with torch.no_grad():
        return torch.cat([network(chunk)[:, 0] for chunk in _chunks(tested_NCHW)]).double().numpy()


def _chunks(images_NCHW: np.ndarray) -> list[Tensor]:
    return [
        torch.from_numpy(np.ascontiguousarray(images_NCHW[at : at + AT_ONCE]))
        for at in range(0, len(images_NCHW), AT_ONCE)
    ]
