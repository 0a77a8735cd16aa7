"""Frozen features of a cohort, computed once and kept."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from torch import nn

from wardround.checkpoint import load_checkpoint, save_checkpoint
from wardround.private_files import make_folder
from wardround_client.data.cohort import Cohort


def features_of(network: nn.Module, cohort: Cohort, device: torch.device, cache_folder: Path | None) -> np.ndarray:
    """Frozen features of every image, float32 (N, D); kept in `cache_folder` by network, weights and cohort.

    Each image goes through the network alone: in a batch, the last bit of its features would depend on the other
    images, and weights that a server sends for the head could blow that bit up.
    """
    path = None
    if cache_folder is not None:
        path = cache_folder / f"features-each-{_frozen_sha256(network)[:16]}-{cohort.key[:16]}.safetensors"
        if path.is_file():
            tensors, _ = load_checkpoint(path)
            if len(tensors["features_ND"]) == len(cohort.images_NCHW):
                return tensors["features_ND"]
    network = network.to(device).eval()
    parts = []
    with torch.no_grad():
        for image in range(len(cohort.images_NCHW)):
            images = torch.from_numpy(np.array(cohort.images_NCHW[image : image + 1])).to(device)
            parts.append(network.features(images).float().cpu().numpy())
        if not parts:  # nobody is there: no row, as wide as that of an image would be
            blank = torch.zeros((1, *cohort.images_NCHW.shape[1:]), dtype=torch.uint8, device=device)
            parts.append(network.features(blank).float().cpu().numpy()[:0])
    features_ND = np.concatenate(parts)
    if path is not None:
        make_folder(cache_folder)
        save_checkpoint(path, {"features_ND": features_ND}, {"cohort": cohort.key})
    return features_ND


def _frozen_sha256(network: nn.Module) -> str:
    """SHA-256 over the names and bytes of everything but the head."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        if not name.startswith("head."):
            digest.update(name.encode() + str(tuple(tensor.shape)).encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
