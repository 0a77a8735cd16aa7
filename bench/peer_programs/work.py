"""The work that every program of this folder does: read PNG files, train the seed CNN, score it, in torch and Opacus.

Runs in the environments of `bench/peers.py`, so it imports nothing of Wardround. The settings are a JSON file: `data`
(a folder with manifest.csv), `sites`, `rounds`, `steps`, `batch`, `image_size`, `learning_rate`, `noise` (0: no
privacy), `clip`. Shapes: N images, C channels, H rows, W columns.
"""

from __future__ import annotations

import csv
import functools
import json
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

HOLDOUT = 0.2
Weights = dict[str, Tensor]


def settings_of(path: str | Path) -> dict:
    return json.loads(Path(path).read_text(encoding="utf-8"))


class SeedCNN(nn.Sequential):
    """The network of wardround.networks.seed_cnn, for grey images and two labels, from fixed weights."""

    def __init__(self, image_size: int) -> None:
        side = ((image_size - 2) // 2 - 2) // 2
        with torch.random.fork_rng():
            torch.manual_seed(1)
            super().__init__(
                nn.Conv2d(1, 32, 3),
                nn.ReLU(),
                nn.MaxPool2d(2),
                nn.Conv2d(32, 64, 3),
                nn.ReLU(),
                nn.MaxPool2d(2),
                nn.Flatten(),
                nn.Linear(64 * side * side, 128),
                nn.ReLU(),
                nn.Linear(128, 1),
            )
            for layer in self:
                if isinstance(layer, (nn.Conv2d, nn.Linear)):
                    nn.init.xavier_uniform_(layer.weight)
                    nn.init.zeros_(layer.bias)


@functools.cache
def read_site(data: str, site: str) -> tuple[TensorDataset, TensorDataset]:
    """A site's training images and the held-out fifth of them, decoded once a process."""
    with (Path(data) / "manifest.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["site"] == site]
    images_NHW = np.stack([np.asarray(Image.open(Path(data) / row["file"]), dtype=np.float32) for row in rows])
    labels_N = torch.tensor([float(row["label"] == "malignant") for row in rows])
    everything, held_out = torch.from_numpy(images_NHW[:, None] / 255), round(HOLDOUT * len(rows))
    return (
        TensorDataset(everything[held_out:], labels_N[held_out:]),
        TensorDataset(everything[:held_out], labels_N[:held_out]),
    )


def train(network: nn.Module, settings: dict, site: str) -> Weights:
    """One round at a site: `steps` steps of Adam, with Opacus where `noise` is not 0. Returns the new weights."""
    network.train()
    images, _ = read_site(settings["data"], site)
    loader = DataLoader(images, batch_size=settings["batch"], shuffle=True, drop_last=True)
    optimizer = torch.optim.Adam(network.parameters(), lr=settings["learning_rate"])
    trained = network
    if settings["noise"]:
        from opacus import PrivacyEngine

        warnings.simplefilter("ignore")  # Opacus advises secure_mode, which needs another package
        trained, optimizer, loader = PrivacyEngine().make_private(
            module=network,
            optimizer=optimizer,
            data_loader=loader,
            noise_multiplier=settings["noise"],
            max_grad_norm=settings["clip"],
        )
    left = settings["steps"]
    while left:
        for images_NCHW, labels_N in loader:
            optimizer.zero_grad()
            logits_N = trained(images_NCHW).squeeze(1)
            nn.functional.binary_cross_entropy_with_logits(logits_N, labels_N).backward()
            optimizer.step()
            left -= 1
            if not left:
                break
    if settings["noise"]:
        trained.remove_hooks()  # the caller uses the network again
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}


def score(network: nn.Module, settings: dict) -> float:
    """Share of the held-out images of all sites that get the right label."""
    network.eval()
    right = total = 0
    with torch.no_grad():
        for site in settings["sites"]:
            images_NCHW, labels_N = read_site(settings["data"], site)[1].tensors
            right += int(((network(images_NCHW).squeeze(1) > 0) == (labels_N > 0.5)).sum())
            total += len(labels_N)
    return right / total


def mean_of(weights: list[Weights]) -> Weights:
    return {name: torch.stack([one[name] for one in weights]).mean(0) for name in weights[0]}
