"""Frozen features of a cohort, computed once and cached."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import nn

from wardround.errors import DataError, WardroundError
from wardround.storage.checkpoint import load_checkpoint, save_checkpoint
from wardround.storage.folders import make_folder
from wardround_client.sources.cohort import AnyRows, Cohort

log = logging.getLogger(__name__)


def features_of(network: nn.Module, cohort: Cohort, device: torch.device, cache_folder: Path | None) -> np.ndarray:
    """Return the frozen features of every image, float32 (N, D).

    They are cached in `cache_folder` by network, weights and cohort. Each image is passed through the network alone: in
    a batch, the last bit of its features would depend on the other images, and weights that a server sends for the head
    could amplify that bit. An image that cannot be read or computed gets NaN features in this round.

    Raises:
        DataError: No image can be read or computed.
    """
    path = None
    if cache_folder is not None:
        path = cache_folder / f"features-each-{_frozen_sha256(network)[:16]}-{cohort.key[:16]}.safetensors"
        kept = _kept(path)
        if kept is not None and len(kept) == len(cohort.values_N):
            return kept
    features_ND, failed = compute_features(network, cohort.values_N, np.arange(len(cohort.values_N)), device)
    if failed and failed == len(cohort.values_N):
        raise DataError("no prepared image can be read or computed; see the errors logged above")
    if path is not None and not failed:
        make_folder(path.parent)
        save_checkpoint(path, {"features_ND": features_ND}, {"cohort": cohort.key})
    return features_ND


def compute_features(
    network: nn.Module, values_N: AnyRows, rows: np.ndarray, device: torch.device
) -> tuple[np.ndarray, int]:
    """Return the features of the given rows, float32 (N, D), and how many of these rows failed.

    Each image is passed through the network alone (see `features_of`). Rows that failed or were not asked for are NaN.
    """
    network = network.to(device).eval()
    features = cast(Callable[[torch.Tensor], torch.Tensor], network.features)

    @torch.no_grad()
    def of(row: np.ndarray) -> np.ndarray:
        return features(torch.from_numpy(np.array(row[None])).to(device)).float().cpu().numpy()[0]

    width = len(of(np.zeros(values_N.shape[1:], values_N.dtype)))  # works for an empty cohort too
    features_ND, failed = np.full((len(values_N), width), np.nan, np.float32), 0
    for row in rows:
        try:
            features_ND[row] = of(values_N[row])
        except Exception:
            failed += 1
            log.exception("image %d has no features: its patient counts as zero", row)
    return features_ND, failed


def _kept(path: Path) -> np.ndarray | None:
    """Return the features in a file, or None if the file is missing or damaged.

    The caller then computes the features again and writes them anew.
    """
    if not path.is_file():
        return None
    try:
        features_ND = load_checkpoint(path)[0].get("features_ND")
    except WardroundError as error:
        log.warning("%s: %s; computing the features again", path.name, error)
        return None
    return features_ND if features_ND is not None and features_ND.ndim == 2 else None


def _frozen_sha256(network: nn.Module) -> str:
    """Return the SHA-256 of the names and bytes of everything but the head."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        if not name.startswith("head."):
            digest.update(name.encode() + str(tuple(tensor.shape)).encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
