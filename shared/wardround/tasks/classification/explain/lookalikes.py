"""The generated nodules that look most alike to a model: nearest in its features among a fixed public set.

No patient's image is shown or stored; the phantoms come from a seed. Shapes: N images, C channels, D features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from wardround.phantoms.masked import generate_masked_crops

SEED, PHANTOMS = 53, 300  # the seed differs from those of the shipped files
SHOWN = 4
AT_ONCE = 50
NAMES = ("benign", "malignant")


@dataclass(frozen=True, kw_only=True, eq=False)
class Lookalike:
    """One phantom: uint8 (H, W), what it was generated as, its distance, and the model's score for it.

    The distance is in standard deviations of the features over the phantoms, root mean square over the features.
    """

    image_HW: np.ndarray
    generated_as: str
    distance: float
    score: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Lookalikes:
    """The nearest phantoms, nearest first. `farther` is the share of phantoms whose own nearest phantom is farther.

    A small share means that the image resembles no phantom, so that the examples say little.
    """

    nearest: tuple[Lookalike, ...]
    farther: float


def lookalikes(network: nn.Module, image_CHW: np.ndarray, score_of: Callable[[Tensor], Tensor]) -> Lookalikes:
    """Return the phantoms nearest to an image, uint8 (C, H, W) with H = W, in the features of the network.

    `score_of` maps grey values (N, C, H, W) to the scores that are shown, (N,).
    """
    channels, side = image_CHW.shape[:2]
    phantoms = generate_masked_crops(PHANTOMS, SEED, side)
    images_NCHW = phantoms.images_NHW[:, None].expand(-1, channels, -1, -1)
    features_ND = _features(network, images_NCHW)
    mean_D, deviation_D = features_ND.mean(0), features_ND.std(0)
    used_D = deviation_D > 1e-6  # a feature that is zero for every phantom has no scale
    standard_ND = ((features_ND - mean_D) / deviation_D)[:, used_D]
    own_ND = _features(network, torch.from_numpy(np.array(image_CHW[None])))
    own_1D = ((own_ND - mean_D) / deviation_D)[:, used_D]
    scale = standard_ND.shape[1] ** 0.5
    distance_N = torch.cdist(own_1D, standard_ND)[0] / scale
    order = distance_N.argsort()[:SHOWN]
    with torch.no_grad():
        scores = score_of(images_NCHW[order])
    among_NN = torch.cdist(standard_ND, standard_ND) / scale
    among_NN.fill_diagonal_(float("inf"))
    return Lookalikes(
        nearest=tuple(
            Lookalike(
                image_HW=phantoms.images_NHW[place].numpy(),
                generated_as=NAMES[int(phantoms.labels_N[place])],
                distance=float(distance_N[place]),
                score=float(score),
            )
            for place, score in zip(order.tolist(), scores, strict=True)
        ),
        farther=float((among_NN.amin(1) > distance_N.min()).float().mean()),
    )


@torch.no_grad()
def _features(network: nn.Module, images_NCHW: Tensor) -> Tensor:
    features = cast(Callable[[Tensor], Tensor], network.eval().features)
    return torch.cat([features(chunk) for chunk in images_NCHW.split(AT_ONCE)]).float()
