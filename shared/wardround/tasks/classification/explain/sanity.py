"""Two checks of maps: do they point at the nodule of a phantom, and do they depend on the network's weights?

The pointing game (Zhang et al. 2018) counts images in which the largest value of the map lies on the object. The sanity
check (Adebayo et al. 2018) compares the map of a network with the map of the same network with random weights: a map
that stays the same shows the image's edges, not the network's reasons.

Shapes: N images, H rows, W columns.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from wardround.networks.public_head import PhantomHead
from wardround.tasks.classification.explain.maps import Maps, maps_of
from wardround.tasks.reconstruction.image_quality import ssim

MOST_ALIKE = 0.5  # a rank correlation above this means that a map hardly depends on the weights
SMALLEST_RANGE = 1e-12
DRAWS = 3  # random networks that an image's maps are compared with; a single one may be alike by chance


@dataclass(frozen=True, kw_only=True)
class Likeness:
    """How alike two maps are: Spearman's rank correlation and the mean structural similarity, both at most 1."""

    rank_correlation: float
    structural_similarity: float

    @property
    def alike(self) -> bool:
        """Whether the maps are so alike that they cannot depend on what differs between the networks."""
        return self.rank_correlation > MOST_ALIKE


@dataclass(frozen=True, kw_only=True)
class SanityCheck:
    """The likeness of each map of an image with the maps of networks with random weights, on average."""

    evidence: Likeness
    occlusion: Likeness

    @property
    def passed(self) -> bool:
        """Whether both maps change."""
        return not (self.evidence.alike or self.occlusion.alike)


def points_at(maps_NHW: Tensor, masks_NHW: Tensor) -> Tensor:
    """Return whether the largest value of each map lies within its mask, bool (N,)."""
    place_N1 = maps_NHW.flatten(1).argmax(1, keepdim=True)
    return masks_NHW.flatten(1).gather(1, place_N1)[:, 0]


def randomised(network: nn.Module, seed: int = 0) -> nn.Module:
    """Return a copy of the network with all weights drawn anew, and of each tensor the same deviation.

    The weights of a `PhantomHead` include those of the encoder and of the projection.
    """
    other = copy.deepcopy(network).eval()
    generator = torch.Generator().manual_seed(seed)
    tensors = dict(other.named_parameters())
    if isinstance(other, PhantomHead):
        tensors["projection"] = other.public.projection_DC  # type: ignore[assignment]  # a buffer
    with torch.no_grad():
        for tensor in tensors.values():
            if tensor.ndim < 2:
                continue  # scales and shifts of normalisation layers, and biases
            spread = float(tensor.std()) if tensor.numel() > 1 else 0.0
            drawn = torch.randn(tensor.shape, generator=generator) * (spread or 0.1)
            tensor.copy_(drawn.to(tensor))
    return other


def likeness(one_HW: np.ndarray, other_HW: np.ndarray) -> Likeness:
    """Compare two maps (H, W), each scaled to the range 0..1."""
    if np.ptp(one_HW) < SMALLEST_RANGE or np.ptp(other_HW) < SMALLEST_RANGE:
        return Likeness(rank_correlation=0.0, structural_similarity=0.0)  # a map without any structure is like no other
    read = (one_HW != 0) | (other_HW != 0)  # the network does not read the others
    correlation = float(spearmanr(one_HW[read], other_HW[read]).statistic)
    scaled = [
        torch.from_numpy((map_ - map_.min()) / np.ptp(map_) * 255)[None, None].float() for map_ in (one_HW, other_HW)
    ]
    return Likeness(
        rank_correlation=correlation if np.isfinite(correlation) else 0.0,
        structural_similarity=float(ssim(scaled[0], scaled[1])[0]),
    )


def check_maps(network: nn.Module, image_CHW: np.ndarray, label: int, maps: Maps) -> SanityCheck:
    """Compare the maps of an image, uint8 (C, H, W), with those of three networks with random weights, on average."""
    others = [maps_of(randomised(network, seed), image_CHW, label) for seed in range(DRAWS)]
    return SanityCheck(
        evidence=_mean([likeness(maps.evidence_HW, other.evidence_HW) for other in others]),
        occlusion=_mean([likeness(maps.occlusion_HW, other.occlusion_HW) for other in others]),
    )


def _mean(found: list[Likeness]) -> Likeness:
    return Likeness(
        rank_correlation=float(np.mean([one.rank_correlation for one in found])),
        structural_similarity=float(np.mean([one.structural_similarity for one in found])),
    )
