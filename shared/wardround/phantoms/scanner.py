"""The effects of a CT scanner and of an export to grey values on a phantom: blur, kernel, noise, window.

Shapes: N pictures, H rows, W columns. Values are in Hounsfield units until `window`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from wardround.phantoms.anatomy import Dice, column, grain, size_of


@dataclass(frozen=True, kw_only=True)
class Scanner:
    """Scanner and protocol (N,): blur and edge enhancement of the kernel; strength, grain and streaks of the noise."""

    blur_px: Tensor
    sharpening: Tensor
    noise_hu: Tensor
    noise_blur_px: Tensor
    streak: Tensor
    streak_angle: Tensor


def draw_scanner(dice: Dice) -> Scanner:
    """Draw a random scanner for each picture.

    Kernels range from smooth to sharp, and noise from 5 to 60 HU. One scanner in eight has a low dose, and one in three
    has streaks, most of them horizontal.
    """
    return Scanner(
        blur_px=dice.uniform(0.3, 0.9),
        sharpening=dice.chance(0.25) * dice.uniform(0.2, 1.2),
        noise_hu=dice.uniform(5, 60) + dice.chance(0.12) * dice.uniform(0, 90),
        noise_blur_px=dice.uniform(0.35, 0.9),
        streak=1 + dice.chance(0.35) * dice.uniform(0.5, 5),
        streak_angle=0.15 * dice.normal() + dice.chance(0.2) * dice.uniform(0, math.pi),
    )


def acquire(scanner: Scanner, dice: Dice, scene_NHW: Tensor) -> Tensor:
    """Return the scene as this scanner images it (N, H, W), in HU."""
    picture = blur(scene_NHW, scanner.blur_px)
    picture = picture + column(scanner.sharpening) * (picture - blur(picture, torch.ones_like(scanner.blur_px)))
    noise = grain(dice, size_of(picture), scanner.noise_blur_px, scanner.streak, scanner.streak_angle)
    return picture + noise * column(scanner.noise_hu)


def blur(pictures_NHW: Tensor, deviation_px: Tensor) -> Tensor:
    """Apply a Gaussian blur with one deviation (N,) per picture; five taps in each direction, border repeated."""
    taps = torch.exp(-(torch.arange(-2, 3) ** 2)[None] / 2 / deviation_px[:, None] ** 2)
    taps = taps / taps.sum(1, keepdim=True)
    rows, columns = pictures_NHW.shape[1:]
    padded = F.pad(pictures_NHW[None], (2, 2, 2, 2), mode="replicate")[0]
    across = cast(Tensor, sum(padded[:, :, k : k + columns] * column(taps[:, k]) for k in range(5)))
    return cast(Tensor, sum(across[:, k : k + rows] * column(taps[:, k]) for k in range(5)))


def window(dice: Dice, hu_NHW: Tensor) -> Tensor:
    """Convert HU to grey values 0..255 (uint8) with a random window.

    Three in ten windows extend down to a padding value far below air, as in some exports.
    """
    air, padding, deep_padding = dice.uniform(-1050, -950), dice.uniform(-2100, -1900), dice.uniform(-3100, -2900)
    low = torch.where(dice.chance(0.7) > 0, air, torch.where(dice.chance(0.7) > 0, padding, deep_padding))
    high = dice.uniform(math.log(200), math.log(2000)).exp()
    return ((hu_NHW - column(low)) / column(high - low) * 255).clamp(0, 255).round().to(torch.uint8)
