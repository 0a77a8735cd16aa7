"""Phantom nodule crops for pre-training, generated at thousands per second.

A crop has 64 x 64 pixels of 0.55 to 0.85 mm, with a nodule near the centre and a random scanner. The ranges come from
public knowledge about lung nodules and scanners; no real pixels and no statistics of a real data set are used. They are
wide on purpose (domain randomisation), so that an encoder trained on many windows, noise levels and blurs generalises
to a hospital's scanner.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

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
from wardround.phantoms.nodule import Nodule, draw_nodule, insert_nodule, paint_attached_vessel, paint_nodule
from wardround.phantoms.scanner import acquire, draw_scanner, window

GENERATOR_VERSION = 2
CROP_PX = 64
REACH_MM = 24.0  # half of a crop's side at the usual pixel size
BATCH = 100  # pictures painted at once, few enough for the cache of a CPU core
CONCEPTS = (
    "log_diameter",
    "spiculation",
    "lobulation",
    "solid",
    "calcified",
    "wall_contact",
    "vessel_contact",
    "part_solid",
    "ground_glass",
    "cavity",
    "elongation",
    "roughness",
    "softness",
    "log_pixels",
)


@dataclass(frozen=True, kw_only=True)
class PhantomCrops:
    """A set of crops with their labels.

    `images_NHW` are uint8 grey values, `labels_N` int64 (1: malignant), `concepts_NK` float32 in the order of
    `CONCEPTS`, and `spacing_mm_N` float32.
    """

    images_NHW: Tensor
    labels_N: Tensor
    concepts_NK: Tensor
    spacing_mm_N: Tensor


def generate_crops(count: int, seed: int, progress: Callable[[int, int], None] | None = None) -> PhantomCrops:
    """Paint `count` crops, half of them malignant on average.

    The same count and seed give the same pictures on one machine. Each batch has its own random stream, so the first
    pictures do not depend on how many follow. `progress(done, count)` is called after each batch.
    """
    batches = []
    for first in range(0, count, BATCH):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + first)
        batches.append(_generate_batch(Dice(BATCH, generator)))
        if progress is not None:
            progress(min(first + BATCH, count), count)
    return PhantomCrops(
        images_NHW=torch.cat([b.images_NHW for b in batches])[:count],
        labels_N=torch.cat([b.labels_N for b in batches])[:count],
        concepts_NK=torch.cat([b.concepts_NK for b in batches])[:count],
        spacing_mm_N=torch.cat([b.spacing_mm_N for b in batches])[:count],
    )


def _generate_batch(dice: Dice) -> PhantomCrops:
    spacing_mm = dice.uniform(0.55, 0.85)
    steps = torch.arange(CROP_PX) - CROP_PX / 2 + 0.5
    x_NHW, y_NHW = column(spacing_mm) * steps[None, None, :], column(spacing_mm) * steps[None, :, None]
    nodule = draw_nodule(dice, dice.chance(0.5))
    scene, wall_share = paint_surroundings(dice, nodule, x_NHW, y_NHW)
    share, hu = paint_nodule(nodule, dice, x_NHW, y_NHW)
    scene = insert_nodule(scene, share, hu, nodule.cavity)
    quarter = CROP_PX // 4
    contact = wall_share[:, quarter:-quarter, quarter:-quarter].mean((1, 2))
    return PhantomCrops(
        images_NHW=window(dice, acquire(draw_scanner(dice), dice, scene)),
        labels_N=nodule.malignant.long(),
        concepts_NK=_concepts(nodule, contact, spacing_mm),
        spacing_mm_N=spacing_mm,
    )


def paint_surroundings(
    dice: Dice, nodule: Nodule, x_NHW: Tensor, y_NHW: Tensor, reach_mm: float = REACH_MM
) -> tuple[Tensor, Tensor]:
    """Return the scene with lung, vessels and up to two walls in HU, and the share of wall (0..1), both (N, H, W).

    Vessels lie within `reach_mm` of the centre.
    """
    scene = paint_texture(draw_texture(dice), dice, (y_NHW.shape[1], x_NHW.shape[2]))
    vessels = draw_vessels(dice, reach_mm=reach_mm, clear_mm=nodule.radius_mm)
    share = torch.maximum(paint_vessels(vessels, x_NHW, y_NHW), paint_attached_vessel(nodule, x_NHW, y_NHW))
    scene = scene + (column(vessels.contrast_hu) - scene) * share * column(vessels.opacity)
    scene = scene + (column(vessels.contrast_hu) - scene) * paint_masses(vessels, x_NHW, y_NHW)
    against = nodule.radius_mm * dice.uniform(0.4, 1.2)
    away = nodule.radius_mm + dice.uniform(0.7, 21)
    nearest = torch.where(dice.chance(0.35) > 0, against, away)
    wall_share = torch.zeros_like(scene)
    for distance_mm, probability in ((nearest, 0.6), (nodule.radius_mm + dice.uniform(5, 25), 0.15)):
        part, tissue = paint_wall(draw_wall(dice, distance_mm, probability), dice, x_NHW, y_NHW)
        scene = scene * (1 - part) + tissue * part
        wall_share = torch.maximum(wall_share, part)
    return scene, wall_share


def _concepts(nodule: Nodule, wall_contact: Tensor, spacing_mm: Tensor) -> Tensor:
    solid = 1 - nodule.ground_glass - nodule.part_solid
    columns = (
        (2 * nodule.radius_mm).log() - 2,
        nodule.spiculated,
        nodule.lobulation * 5,
        solid,
        nodule.calcified,
        wall_contact,
        nodule.attached,
        nodule.part_solid,
        nodule.ground_glass,
        nodule.cavity,
        nodule.elongation,
        nodule.roughness,
        nodule.edge_mm,
        (2 * nodule.radius_mm / spacing_mm).log() - 2.4,
    )
    return torch.stack(columns, 1)
