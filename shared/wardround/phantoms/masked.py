"""Phantom crops with a mask of the nodule, to measure where a network looks.

They are painted like `crops`, at any size and with the nodule anywhere near the middle. Shapes: N pictures, H rows, W
columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from wardround.phantoms.anatomy import Dice, column
from wardround.phantoms.crops import CROP_PX, REACH_MM, paint_surroundings
from wardround.phantoms.nodule import draw_nodule, insert_nodule, paint_nodule
from wardround.phantoms.scanner import acquire, draw_scanner, window

BATCH = 50
OF_NODULE = 0.5  # a pixel belongs to the nodule if its share is at least half of the largest share


@dataclass(frozen=True, kw_only=True)
class MaskedCrops:
    """Crops, uint8 (N, H, W), labels, int64 (N,) (1: malignant), and nodule masks, bool (N, H, W)."""

    images_NHW: Tensor
    labels_N: Tensor
    masks_NHW: Tensor


def generate_masked_crops(count: int, seed: int, size_px: int = CROP_PX, shift_px: float = 0.0) -> MaskedCrops:
    """Paint `count` crops of `size_px` pixels a side, half of them malignant on average.

    The nodule's centre is within 2 mm of the crop's, moved by up to `shift_px` pixels in each direction. The same
    arguments give the same pictures on one machine.
    """
    batches = []
    for first in range(0, count, BATCH):
        dice = Dice(BATCH, torch.Generator().manual_seed(seed * 1_000_211 + first))
        batches.append(_paint(dice, size_px, shift_px))
    return MaskedCrops(
        images_NHW=torch.cat([batch.images_NHW for batch in batches])[:count],
        labels_N=torch.cat([batch.labels_N for batch in batches])[:count],
        masks_NHW=torch.cat([batch.masks_NHW for batch in batches])[:count],
    )


def _paint(dice: Dice, size_px: int, shift_px: float) -> MaskedCrops:
    spacing_mm = dice.uniform(0.55, 0.85)
    steps = torch.arange(size_px) - size_px / 2 + 0.5
    x_NHW, y_NHW = column(spacing_mm) * steps[None, None, :], column(spacing_mm) * steps[None, :, None]
    nodule = draw_nodule(dice, dice.chance(0.5))
    right_mm, down_mm = (dice.uniform(-shift_px, shift_px) * spacing_mm for _ in range(2))
    x_NHW, y_NHW = x_NHW - column(right_mm), y_NHW - column(down_mm)  # the whole scene moves with the nodule
    scene, _ = paint_surroundings(dice, nodule, x_NHW, y_NHW, REACH_MM * size_px / CROP_PX)
    share, hu = paint_nodule(nodule, dice, x_NHW, y_NHW)
    scene = insert_nodule(scene, share, hu, nodule.cavity)
    return MaskedCrops(
        images_NHW=window(dice, acquire(draw_scanner(dice), dice, scene)),
        labels_N=nodule.malignant.long(),
        masks_NHW=share >= OF_NODULE * share.amax((1, 2), keepdim=True),
    )
