"""Phantom pictures for restoration: crops of 64 x 64 pixels from anywhere in the chest.

The anatomy is that of `crops`, at any position: the nodule may be off the centre or absent, the chest wall with its
ribs is in most pictures, and there is air beyond the skin. An encoder needs nodules in the middle, while a restoration
network is applied to all of an image. No real pixels and no statistics of a real data set are used.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from wardround.phantoms.anatomy import (
    Dice,
    column,
    draw_texture,
    draw_vessels,
    draw_wall,
    paint_masses,
    paint_texture,
    paint_vessels,
    paint_wall,
)
from wardround.phantoms.nodule import draw_nodule, insert_nodule, paint_attached_vessel, paint_nodule
from wardround.phantoms.scanner import acquire, draw_scanner, window

SCENES_VERSION = 1
SCENE_PX = 64
BATCH = 100
AIR_HU = -1000.0


def generate_scenes(count: int, seed: int, progress: Callable[[int, int], None] | None = None) -> Tensor:
    """Paint `count` pictures, uint8 (N, 64, 64). The same count and seed give the same pictures on one machine."""
    batches = []
    for first in range(0, count, BATCH):
        generator = torch.Generator().manual_seed(seed * 1_000_033 + first)
        batches.append(paint_scenes(Dice(BATCH, generator)))
        if progress is not None:
            progress(min(first + BATCH, count), count)
    return torch.cat(batches)[:count]


def paint_scenes(dice: Dice) -> Tensor:
    """Paint one batch of scenes, uint8 (N, 64, 64)."""
    spacing_mm = dice.uniform(0.55, 0.85)
    steps = torch.arange(SCENE_PX) - SCENE_PX / 2 + 0.5
    x_NHW = column(spacing_mm) * steps[None, None, :] + column(dice.uniform(-14, 14))
    y_NHW = column(spacing_mm) * steps[None, :, None] + column(dice.uniform(-14, 14))
    scene = paint_texture(draw_texture(dice), dice, (SCENE_PX, SCENE_PX))
    nodule = draw_nodule(dice, dice.chance(0.5))
    vessels = draw_vessels(dice, reach_mm=26, clear_mm=nodule.radius_mm)
    share = torch.maximum(paint_vessels(vessels, x_NHW, y_NHW), paint_attached_vessel(nodule, x_NHW, y_NHW))
    scene = scene + (column(vessels.contrast_hu) - scene) * share * column(vessels.opacity)
    scene = scene + (column(vessels.contrast_hu) - scene) * paint_masses(vessels, x_NHW, y_NHW)
    for distance_mm, probability in ((dice.uniform(-18, 22), 0.7), (dice.uniform(2, 25), 0.2)):
        wall = draw_wall(dice, distance_mm, probability)
        part, tissue = paint_wall(wall, dice, x_NHW, y_NHW)
        scene = scene * (1 - part) + tissue * part
        outward = x_NHW * column(wall.angle.cos()) + y_NHW * column(wall.angle.sin())
        skin_mm = distance_mm + dice.uniform(14, 45)
        outside = column(wall.present * dice.chance(0.6)) * torch.sigmoid((outward - column(skin_mm)) / 0.4)
        scene = scene * (1 - outside) + AIR_HU * outside
    nodules, hu = paint_nodule(nodule, dice, x_NHW, y_NHW)
    scene = insert_nodule(scene, nodules * column(dice.chance(0.6)), hu, nodule.cavity)
    return window(dice, acquire(draw_scanner(dice), dice, scene))
