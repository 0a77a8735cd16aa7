"""Pictures without a nodule in their middle: empty lung, chest wall and skin, and pictures of nothing in particular.

A network that must recognise images unlike its training data learns from them what such images may be (outlier
exposure: Hendrycks et al. 2019). All are generated; no photograph and no patient's image is used.

Shapes: N pictures, H rows, W columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from wardround.phantoms.anatomy import Dice, column
from wardround.phantoms.crops import CROP_PX, paint_surroundings
from wardround.phantoms.nodule import draw_nodule
from wardround.phantoms.scanner import acquire, draw_scanner, window
from wardround.phantoms.scenes import paint_scenes

OUTLIERS_VERSION = 1
BATCH = 100
EMPTY_SHARE, CHEST_SHARE = 0.55, 0.2  # the others are painted pictures
FIGURES = 8
NO_NODULE_MM = 1.0  # vessels may come this close to the middle

Progress = Callable[[int, int], None]


def generate_outliers(count: int, seed: int, progress: Progress | None = None) -> Tensor:
    """Paint `count` pictures, uint8 (N, 64, 64): empty lung, then the chest anywhere, then pictures without anatomy.

    The same count and seed give the same pictures on one machine. About one in twenty pictures of the chest shows a
    nodule near its middle by chance.
    """
    empty, chest = round(count * EMPTY_SHARE), round(count * CHEST_SHARE)
    parts = [
        (empty, empty_crops, 1_000_117),
        (chest, paint_scenes, 1_000_133),
        (count - empty - chest, painted_pictures, 1_000_151),
    ]
    made: list[Tensor] = []
    for number, paint, spread in parts:
        for first in range(0, number, BATCH):
            generator = torch.Generator().manual_seed(seed * spread + first)
            made.append(paint(Dice(BATCH, generator))[: number - first])
            if progress is not None:
                progress(sum(map(len, made)), count)
    return torch.cat(made)


def empty_crops(dice: Dice) -> Tensor:
    """Paint crops as `crops.generate_crops` does, without the nodule: uint8 (N, 64, 64)."""
    spacing_mm = dice.uniform(0.55, 0.85)
    steps = torch.arange(CROP_PX) - CROP_PX / 2 + 0.5
    x_NHW, y_NHW = column(spacing_mm) * steps[None, None, :], column(spacing_mm) * steps[None, :, None]
    nodule = draw_nodule(dice, dice.chance(0.5))
    absent = torch.zeros_like(nodule.radius_mm)
    scene, _ = paint_surroundings(dice, replace(nodule, radius_mm=absent + NO_NODULE_MM, attached=absent), x_NHW, y_NHW)
    return window(dice, acquire(draw_scanner(dice), dice, scene))


def painted_pictures(dice: Dice) -> Tensor:
    """Paint clouds, and clouds covered by figures with sharp or soft edges, in any contrast: uint8 (N, 64, 64)."""
    clouds, with_figures = _clouds(dice), _figures(dice)
    return _as_grey(torch.where(column(dice.chance(0.7)) > 0, with_figures, clouds), dice)


def _clouds(dice: Dice) -> Tensor:
    """Return noise with a power-law spectrum, stretched in a random direction, mean 0 and deviation 1: (N, H, W)."""
    frequency = torch.fft.fftfreq(CROP_PX)
    steepness, stretch = dice.uniform(0, 3.2), (0.5 * dice.normal()).exp()
    turn = dice.uniform(0, math.pi)
    along = frequency[None, None, :] * column(turn.cos()) + frequency[None, :, None] * column(turn.sin())
    across = frequency[None, :, None] * column(turn.cos()) - frequency[None, None, :] * column(turn.sin())
    radius = ((along * column(stretch)) ** 2 + (across / column(stretch)) ** 2).sqrt().clamp(min=0.5 / CROP_PX)
    spectrum = torch.fft.fft2(dice.normal(CROP_PX, CROP_PX)) * radius ** -column(steepness)
    pictures = torch.fft.ifft2(spectrum).real
    deviation = pictures.std((1, 2), keepdim=True).clamp(min=1e-6)
    return (pictures - pictures.mean((1, 2), keepdim=True)) / deviation


def _figures(dice: Dice) -> Tensor:
    """Return clouds with up to eight ellipses, rings, boxes, half planes and bars: (N, H, W)."""
    steps = torch.linspace(-1, 1, CROP_PX)
    x_NHW, y_NHW = steps[None, None, :], steps[None, :, None]
    pictures = _clouds(dice) * column(dice.uniform(0, 1))
    for _ in range(FIGURES):
        x, y = column(dice.uniform(-1.3, 1.3)), column(dice.uniform(-1.3, 1.3))
        wide, high = (column(0.35 * (0.8 * dice.normal()).exp()) for _ in range(2))
        turn, kind = dice.uniform(0, math.pi), column(dice.uniform(0, 1))
        u = (x_NHW - x) * column(turn.cos()) + (y_NHW - y) * column(turn.sin())
        v = (y_NHW - y) * column(turn.cos()) - (x_NHW - x) * column(turn.sin())
        ellipse = ((u / wide) ** 2 + (v / high) ** 2).sqrt()
        ring, box = ((ellipse - 1).abs() - 0.15) * 8 + 1, torch.maximum((u / wide).abs(), (v / high).abs())
        half, bar = u / 0.3 + 1, u.abs() / (0.08 + 0.2 * wide)
        shape = torch.where(kind < 0.7, box, torch.where(kind < 0.85, half, bar))
        shape = torch.where(kind < 0.3, ellipse, torch.where(kind < 0.5, ring, shape))  # below 1 inside the figure
        inside = torch.sigmoid((1 - shape) * column(12 * (0.8 * dice.normal()).exp()))
        inside = inside * column(dice.chance(0.6)) * column(dice.uniform(0.3, 1))
        filling = column(1.5 * dice.normal()) + _clouds(dice) * column(dice.uniform(0, 0.6))
        pictures = pictures * (1 - inside) + filling * inside
    return pictures


def _as_grey(pictures_NHW: Tensor, dice: Dice) -> Tensor:
    """Show pictures in a random contrast, with noise and at times with black background: uint8 (N, H, W)."""
    flat = pictures_NHW.flatten(1)
    low, high = (column(torch.quantile(flat, share, dim=1)) for share in (0.01, 0.99))
    shown = ((pictures_NHW - low) / (high - low).clamp(min=1e-6)).clamp(0, 1) ** column((0.4 * dice.normal()).exp())
    darkest, brightest = column(dice.uniform(0, 0.35)), column(dice.uniform(0.65, 1))
    shown = darkest + (brightest - darkest) * shown
    shown = shown + 0.06 * column(dice.uniform(0, 1) ** 2) * dice.normal(CROP_PX, CROP_PX)
    background = (column(dice.chance(0.15)) > 0) & (shown < 0.25)
    shown = torch.where(background, torch.zeros_like(shown), shown)
    return (shown.clamp(0, 1) * 255).round().to(torch.uint8)
