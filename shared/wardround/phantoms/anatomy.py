"""The parts of a chest-CT phantom: lung texture, vessels, chest wall.

They are based on public prior knowledge only, without real pixels. Each part is a frozen record of random numbers
(`draw_*`) with a function that paints it on any grid (`paint_*`), so that crops (`crops`) and whole volumes
(`wardround_simulation.phantoms.volume`) have the same anatomy. Values are in Hounsfield units (HU), lengths in mm.
Shapes: N pictures, H rows, W columns, K parts of a kind in a picture. A grid is `x_NHW, y_NHW`: mm to the right of and
below the centre.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

VESSELS = 10
DOTS = 10
MASSES = 2
RIBS = 2
FULL_TURN = 2 * math.pi

Part = TypeVar("Part", bound="DataclassInstance")


class Dice:
    """Random numbers for `count` pictures, independent for each picture and all from one seeded generator."""

    def __init__(self, count: int, generator: torch.Generator) -> None:
        self.count = count
        self.generator = generator

    def uniform(self, low: float | Tensor, high: float | Tensor, *shape: int) -> Tensor:
        """(N, *shape), uniform in [low, high)."""
        return low + (high - low) * torch.rand(self.count, *shape, generator=self.generator)

    def normal(self, *shape: int) -> Tensor:
        """(N, *shape), standard normal."""
        return torch.randn(self.count, *shape, generator=self.generator)

    def lognormal(self, median: float, spread: float, low: float, high: float, *shape: int) -> Tensor:
        """(N, *shape), log-normal about `median`, clamped to [low, high]."""
        return (math.log(median) + spread * self.normal(*shape)).exp().clamp(low, high)

    def chance(self, probability: float | Tensor, *shape: int) -> Tensor:
        """(N, *shape) of 1.0 with this probability, else 0.0."""
        return (torch.rand(self.count, *shape, generator=self.generator) < probability).float()


def column(values_N: Tensor) -> Tensor:
    """(N,) -> (N, 1, 1), for broadcasting against a grid."""
    return values_N[:, None, None]


def size_of(pictures_NHW: Tensor) -> tuple[int, int]:
    """Return the height and width of pictures."""
    _, height, width = pictures_NHW.shape
    return height, width


def grain(
    dice: Dice, shape: tuple[int, int], blur_px: Tensor, stretch: Tensor | None = None, angle: Tensor | None = None
) -> Tensor:
    """Return smooth noise (N, H, W) of mean 0 and deviation 1.

    It is white noise blurred by a Gaussian of deviation `blur_px`, `stretch` times wider along `angle`. The blur is
    applied in the Fourier domain: the transform of a Gaussian of deviation s is exp(-2 pi^2 s^2 f^2).
    """
    rows, columns = shape
    spectrum = dice.normal(rows, columns // 2 + 1, 2)
    down, right = torch.meshgrid(torch.fft.fftfreq(rows), torch.fft.rfftfreq(columns), indexing="ij")
    if stretch is None or angle is None:
        squared = (down**2 + right**2)[None]
    else:
        along = right * column(angle.cos()) + down * column(angle.sin())
        across = down * column(angle.cos()) - right * column(angle.sin())
        squared = (along * column(stretch)) ** 2 + across**2
    filtered = torch.view_as_complex(spectrum) * torch.exp(-2 * math.pi**2 * column(blur_px) ** 2 * squared)
    field = torch.fft.irfft2(filtered, s=shape)
    field = field - field.mean((1, 2), keepdim=True)
    return field / field.std((1, 2), keepdim=True).clamp(min=1e-9)


def bump(squared: Tensor) -> Tensor:
    """Approximate exp(-squared / 2), exactly zero beyond 8; many times faster since it creates no denormal numbers."""
    rest = (1 - squared / 8).clamp(min=0)
    rest = rest * rest  # a product, since a general power takes ten times as long
    return rest * rest


def spread_over(part: Part, count: int) -> Part:
    """Repeat a part that was drawn for one picture for `count` pictures (the slices of a series)."""
    return replace(part, **{f.name: (v := getattr(part, f.name)).expand(count, *v.shape[1:]) for f in fields(part)})


def pick(part: Part, rows: Tensor) -> Part:
    """Select the part's values for the pictures in `rows`."""
    return replace(part, **{f.name: getattr(part, f.name)[rows] for f in fields(part)})


@dataclass(frozen=True, kw_only=True)
class Texture:
    """Lung parenchyma (N,): level, slopes, fine texture and the dark holes of emphysema."""

    level_hu: Tensor
    slope_right_hu: Tensor
    slope_down_hu: Tensor
    grain_hu: Tensor
    grain_blur_px: Tensor
    hole_hu: Tensor
    hole_blur_px: Tensor


def draw_texture(dice: Dice) -> Texture:
    """Draw aerated lung between -920 and -780 HU, one in five with emphysema."""
    return Texture(
        level_hu=dice.uniform(-920, -780),
        slope_right_hu=dice.uniform(-40, 40),
        slope_down_hu=dice.uniform(-40, 40),
        grain_hu=dice.uniform(5, 45),
        grain_blur_px=dice.uniform(1.2, 3.0),
        hole_hu=dice.chance(0.2) * dice.uniform(30, 120),
        hole_blur_px=dice.uniform(2.5, 6.0),
    )


def paint_texture(texture: Texture, dice: Dice, shape: tuple[int, int]) -> Tensor:
    """Paint the lung without other structures (N, H, W), in HU."""
    down, right = torch.meshgrid(
        torch.linspace(-0.5, 0.5, shape[0]), torch.linspace(-0.5, 0.5, shape[1]), indexing="ij"
    )
    level = column(texture.level_hu) + column(texture.slope_right_hu) * right + column(texture.slope_down_hu) * down
    fine = grain(dice, shape, texture.grain_blur_px) * column(texture.grain_hu)
    holes = torch.sigmoid((grain(dice, shape, texture.hole_blur_px) - 1.0) * 4) * column(texture.hole_hu)
    return (level + fine - holes).clamp(min=-1000)


@dataclass(frozen=True, kw_only=True)
class Vessels:
    """Vessels as arcs (N, K), bright cross-sections (N, D) and large masses (N, M): position, size and brightness."""

    x_mm: Tensor
    y_mm: Tensor
    angle: Tensor
    half_width_mm: Tensor
    half_length_mm: Tensor
    bend_per_mm: Tensor
    present: Tensor
    dot_x_mm: Tensor
    dot_y_mm: Tensor
    dot_width_mm: Tensor
    dot_present: Tensor
    mass_x_mm: Tensor
    mass_y_mm: Tensor
    mass_radius_mm: Tensor
    mass_present: Tensor
    contrast_hu: Tensor
    opacity: Tensor


def draw_vessels(dice: Dice, reach_mm: float, clear_mm: Tensor | None = None) -> Vessels:
    """Draw one to ten arcs within `reach_mm`, some of which branch off the previous arc, and up to ten cross-sections.

    If `clear_mm` (N,), the free radius around the middle, is given, there may be great vessels (hilum, aorta) or other
    large organs outside it.
    """
    most, dots = VESSELS, DOTS
    x_mm, y_mm = dice.uniform(-reach_mm, reach_mm, most), dice.uniform(-reach_mm, reach_mm, most)
    angle = dice.uniform(0, FULL_TURN, most)
    half_width_mm = dice.lognormal(0.5, 0.45, 0.25, 2.1, most)
    half_length_mm = dice.lognormal(4.5, 0.65, 1.2, 28, most)
    branches = dice.chance(0.35, most)
    for child in range(1, most):
        parent = child - 1
        is_branch, way = branches[:, child], angle[:, parent] + dice.uniform(0.35, 1.0) * (2 * dice.chance(0.5) - 1)
        reach = half_length_mm[:, child]
        at_x = x_mm[:, parent] + half_length_mm[:, parent] * angle[:, parent].cos() * 0.7 + reach * way.cos()
        at_y = y_mm[:, parent] + half_length_mm[:, parent] * angle[:, parent].sin() * 0.7 + reach * way.sin()
        x_mm[:, child] += is_branch * (at_x - x_mm[:, child])
        y_mm[:, child] += is_branch * (at_y - y_mm[:, child])
        angle[:, child] += is_branch * (way - angle[:, child])
        thinner = (half_width_mm[:, parent] * 0.75).clamp(min=0.25)
        half_width_mm[:, child] += is_branch * (thinner - half_width_mm[:, child])
    dot_x_mm, dot_y_mm = dice.uniform(-reach_mm, reach_mm, dots), dice.uniform(-reach_mm, reach_mm, dots)
    mass_radius_mm, mass_angle = dice.lognormal(6, 0.5, 2.5, 24, MASSES), dice.uniform(0, FULL_TURN, MASSES)
    beyond = torch.zeros(dice.count) if clear_mm is None else clear_mm
    mass_at_mm = beyond[:, None] + mass_radius_mm * dice.uniform(0.95, 1.6, MASSES) + dice.uniform(0, 12, MASSES)
    return Vessels(
        x_mm=x_mm,
        y_mm=y_mm,
        angle=angle,
        half_width_mm=half_width_mm,
        half_length_mm=half_length_mm,
        bend_per_mm=dice.uniform(-0.028, 0.028, most),
        present=(torch.arange(most) < dice.uniform(1, most)[:, None]).float(),
        dot_x_mm=dot_x_mm,
        dot_y_mm=dot_y_mm,
        mass_x_mm=mass_at_mm * mass_angle.cos(),
        mass_y_mm=mass_at_mm * mass_angle.sin(),
        mass_radius_mm=mass_radius_mm,
        mass_present=dice.chance(0.0 if clear_mm is None else 0.06, MASSES),
        dot_width_mm=dice.lognormal(0.8, 0.4, 0.35, 2.1, dots),
        dot_present=dice.chance(dice.uniform(0.1, 0.7)[:, None], dots) * ((dot_x_mm**2 + dot_y_mm**2) > 49).float(),
        contrast_hu=dice.uniform(-30, 80) + dice.chance(0.3) * dice.uniform(0, 200),
        opacity=dice.uniform(0.35, 0.95),
    )


def paint_masses(vessels: Vessels, x_NHW: Tensor, y_NHW: Tensor) -> Tensor:
    """Return the share of great vessel or organ in each pixel (N, H, W), 0..1."""
    share = torch.zeros(torch.broadcast_shapes(x_NHW.shape, y_NHW.shape))
    for k in range(MASSES):
        squared = (x_NHW - column(vessels.mass_x_mm[:, k])) ** 2 + (y_NHW - column(vessels.mass_y_mm[:, k])) ** 2
        disc = torch.sigmoid((column(vessels.mass_radius_mm[:, k]) - squared.sqrt()) / 0.5)
        share = torch.maximum(share, column(vessels.mass_present[:, k]) * disc)
    return share


def paint_vessels(vessels: Vessels, x_NHW: Tensor, y_NHW: Tensor) -> Tensor:
    """Return the share of vessel in each pixel (N, H, W), 0..1."""
    share = torch.zeros(torch.broadcast_shapes(x_NHW.shape, y_NHW.shape, (len(vessels.opacity), 1, 1)))
    for k in range(vessels.x_mm.shape[1]):
        dx, dy = x_NHW - column(vessels.x_mm[:, k]), y_NHW - column(vessels.y_mm[:, k])
        cos, sin = column(vessels.angle[:, k].cos()), column(vessels.angle[:, k].sin())
        along = dx * cos + dy * sin
        across = dy * cos - dx * sin + column(vessels.bend_per_mm[:, k]) * along**2
        tube = bump((across / column(vessels.half_width_mm[:, k])) ** 2)
        ends = torch.sigmoid(column(vessels.half_length_mm[:, k]) - along.abs())
        share = torch.maximum(share, column(vessels.present[:, k]) * tube * ends)
    for k in range(vessels.dot_x_mm.shape[1]):
        squared = (x_NHW - column(vessels.dot_x_mm[:, k])) ** 2 + (y_NHW - column(vessels.dot_y_mm[:, k])) ** 2
        dot = bump(squared / column(vessels.dot_width_mm[:, k]) ** 2)
        share = torch.maximum(share, column(vessels.dot_present[:, k]) * dot)
    return share


@dataclass(frozen=True, kw_only=True)
class Wall:
    """One boundary of the lung (N,): chest wall, mediastinum or diaphragm, with fat and (N, K) ribs behind it."""

    present: Tensor
    distance_mm: Tensor
    angle: Tensor
    bulge_per_mm: Tensor
    wave_mm: Tensor
    wave_length_mm: Tensor
    wave_phase: Tensor
    tissue_hu: Tensor
    grain_hu: Tensor
    grain_blur_px: Tensor
    fat_depth_mm: Tensor
    fat_hu: Tensor
    rib_present: Tensor
    rib_along_mm: Tensor
    rib_depth_mm: Tensor
    rib_half_length_mm: Tensor
    rib_half_width_mm: Tensor
    rib_hu: Tensor


def draw_wall(dice: Dice, distance_mm: Tensor, probability: float) -> Wall:
    """Draw a boundary at `distance_mm` (N,) from the centre in a random direction, present with this probability."""
    ribs, wave_length_mm = dice.chance(0.55, RIBS), dice.uniform(12, 45)
    return Wall(
        present=dice.chance(probability),
        distance_mm=distance_mm,
        angle=dice.uniform(0, FULL_TURN),
        bulge_per_mm=dice.uniform(-0.017, 0.028),
        wave_mm=dice.chance(0.3) * dice.uniform(0.02, 0.09) * wave_length_mm,
        wave_length_mm=wave_length_mm,
        wave_phase=dice.uniform(0, FULL_TURN),
        tissue_hu=dice.uniform(-10, 70) + dice.chance(0.15) * dice.uniform(0, 120),
        grain_hu=dice.uniform(5, 40),
        grain_blur_px=dice.uniform(0.8, 1.8),
        fat_depth_mm=dice.uniform(1.4, 10),
        fat_hu=dice.chance(0.5) * dice.uniform(60, 140),
        rib_present=ribs,
        rib_along_mm=dice.uniform(-22, 22, RIBS),
        rib_depth_mm=dice.uniform(2.8, 10, RIBS),
        rib_half_length_mm=dice.uniform(4, 14, RIBS),
        rib_half_width_mm=dice.uniform(1.6, 3.4, RIBS),
        rib_hu=dice.uniform(250, 900, RIBS),
    )


def paint_wall(wall: Wall, dice: Dice, x_NHW: Tensor, y_NHW: Tensor) -> tuple[Tensor, Tensor]:
    """Return the share of wall in each pixel (0..1) and the wall's HU, both (N, H, W)."""
    cos, sin = column(wall.angle.cos()), column(wall.angle.sin())
    outward, along = x_NHW * cos + y_NHW * sin, y_NHW * cos - x_NHW * sin
    wave = column(wall.wave_mm) * torch.cos(FULL_TURN * along / column(wall.wave_length_mm) + column(wall.wave_phase))
    depth = outward - column(wall.distance_mm) + column(wall.bulge_per_mm) * along**2 + wave
    return column(wall.present) * torch.sigmoid(depth / 0.56), paint_wall_tissue(wall, dice, depth, along)


def paint_wall_tissue(wall: Wall, dice: Dice, depth_NHW: Tensor, along_NHW: Tensor) -> Tensor:
    """Paint muscle, fat and ribs in HU (N, H, W) at the given depths behind the lung's surface and positions along it.

    `depth_NHW` and `along_NHW` are in mm.
    """
    tissue = column(wall.tissue_hu) + grain(dice, size_of(depth_NHW), wall.grain_blur_px) * column(wall.grain_hu)
    tissue = tissue - torch.sigmoid((depth_NHW - column(wall.fat_depth_mm)) / 0.7) * column(wall.fat_hu)
    nearest = _nearest_rib(wall, along_NHW)
    along, behind, half_length, half_width, hu = (
        torch.take_along_dim(values_NK, nearest, 1).reshape(depth_NHW.shape)
        for values_NK in (
            wall.rib_along_mm,
            wall.rib_depth_mm,
            wall.rib_half_length_mm,
            wall.rib_half_width_mm,
            wall.rib_present * wall.rib_hu,
        )
    )
    radius = ((along_NHW - along) / half_length) ** 2 + ((depth_NHW - behind) / half_width) ** 2
    cortex = 0.35 + 0.65 * torch.sigmoid((radius - 0.45) * 6)  # a rib is a bright shell around darker marrow
    return tissue + hu * torch.sigmoid((1 - radius) * 3) * cortex


def _nearest_rib(wall: Wall, along_NHW: Tensor) -> Tensor:
    """Return the index of the nearest rib along the wall for each pixel, (N, H W).

    Only the nearest rib can cover a pixel, so that a single rib is evaluated per pixel.
    """
    best, nearest = (along_NHW - column(wall.rib_along_mm[:, 0])).abs(), torch.zeros(along_NHW.shape, dtype=torch.long)
    for k in range(1, wall.rib_along_mm.shape[1]):
        distance = (along_NHW - column(wall.rib_along_mm[:, k])).abs()
        nearest = torch.where(distance < best, k, nearest)
        best = torch.minimum(best, distance)
    return nearest.flatten(1)
