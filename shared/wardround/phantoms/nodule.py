"""The nodule of a phantom: its size, outline, spicules, density, and the vessel that may run into it.

Malignant and benign nodules differ by textbook criteria (size, lobulation, spiculation, part-solid or ground-glass
density, calcification), with a wide overlap as in real nodules. As in `anatomy`, the nodule is a frozen record of
random numbers with functions that paint it on any grid.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from wardround.phantoms.anatomy import FULL_TURN, Dice, bump, column, grain, pick, size_of

HARMONICS = (2, 3, 4, 5, 7)
SPICULES = 12


@dataclass(frozen=True, kw_only=True)
class Nodule:
    """One nodule for each picture (N,), with (N, K) harmonics of its outline and (N, K) spicules.

    `radius_mm` is the radius in the slice shown, before the outline is applied.
    """

    malignant: Tensor
    radius_mm: Tensor
    x_mm: Tensor
    y_mm: Tensor
    angle: Tensor
    elongation: Tensor
    lobulation: Tensor
    wave: Tensor
    wave_phase: Tensor
    roughness: Tensor
    edge_mm: Tensor
    spiculated: Tensor
    spicule_present: Tensor
    spicule_angle: Tensor
    spicule_reach: Tensor
    spicule_width_mm: Tensor
    ground_glass: Tensor
    part_solid: Tensor
    calcified: Tensor
    calcium_hu: Tensor
    calcium_pattern: Tensor
    cavity: Tensor
    solid_hu: Tensor
    glass_hu: Tensor
    core: Tensor
    grain_hu: Tensor
    partial_volume_mm: Tensor
    attached: Tensor
    attached_angle: Tensor
    attached_width_mm: Tensor
    attached_bend_per_mm: Tensor


def draw_nodule(
    dice: Dice, malignant: Tensor, cut: Tensor | None = None, median_mm: tuple[float, float] = (5.5, 13.0)
) -> Nodule:
    """Draw one nodule for each picture.

    Malignant nodules are larger, more often lobulated or spiculated, and sometimes part-solid, ground-glass or hollow.
    Benign nodules are small and round, sometimes calcified (and then larger), and occasionally an elongated scar.

    Args:
        dice: The random numbers.
        malignant: (N,), 1 for malignant and 0 for benign.
        cut: (N,) in 0..1, the distance of the slice from the nodule's middle, in radii. Random if None.
        median_mm: The median diameters of benign and of malignant nodules.
    """
    cut = dice.uniform(0, 0.8) if cut is None else cut
    density = _draw_density(dice, malignant)
    calcified_mm, plain_mm = dice.lognormal(1.45 * median_mm[0], 0.45, 3, 26), dice.lognormal(median_mm[0], 0.4, 3, 20)
    benign_mm = torch.where(density["calcified"] > 0, calcified_mm, plain_mm)
    diameter_mm = torch.where(malignant > 0, dice.lognormal(median_mm[1], 0.45, 4.5, 44), benign_mm)
    radius_mm = diameter_mm / 2 * (1 - cut**2).sqrt()
    # A ball cut away from its middle by a thick slice has a soft edge, because its border shifts within the slice.
    slant_mm = 0.3 * dice.lognormal(1.5, 0.5, 0.5, 5) * cut / (1 - cut**2).sqrt()
    outline = _draw_outline(dice, malignant, radius_mm)
    outline["edge_mm"] = outline["edge_mm"] * (1 + 1.5 * density["ground_glass"]) + slant_mm.clamp(max=2)
    density["cavity"] = density["cavity"] * (radius_mm > 4).float()
    return Nodule(
        malignant=malignant,
        radius_mm=radius_mm,
        x_mm=dice.normal().clamp(-2, 2),
        y_mm=dice.normal().clamp(-2, 2),
        partial_volume_mm=dice.uniform(0.56, 1.54),
        attached=dice.chance(0.35),
        attached_angle=dice.uniform(0, FULL_TURN),
        attached_width_mm=dice.uniform(0.35, 1.1),
        attached_bend_per_mm=dice.uniform(-0.028, 0.028),
        **outline,
        **density,
    )


def _by_kind(malignant: Tensor, of_malignant: float | Tensor, of_benign: float | Tensor) -> Tensor:
    return torch.where(malignant > 0, torch.as_tensor(of_malignant), torch.as_tensor(of_benign))


def _draw_outline(dice: Dice, malignant: Tensor, radius_mm: Tensor) -> dict[str, Tensor]:
    uneven = dice.uniform(0, 0.13) + dice.chance(0.12) * dice.uniform(0.05, 0.2)
    lobulation = _by_kind(malignant, 0.32 * dice.uniform(0, 1) ** 1.3, uneven)
    stretched = dice.chance(_by_kind(malignant, 0.08, 0.15)) * dice.uniform(0.2, 0.6)
    return {
        "angle": dice.uniform(0, math.pi),
        "elongation": dice.uniform(0, 0.35) + stretched,
        "lobulation": lobulation,
        "wave": lobulation[:, None] * dice.normal(len(HARMONICS)) / torch.tensor(HARMONICS) ** 0.75,
        "wave_phase": dice.uniform(0, FULL_TURN, len(HARMONICS)),
        "roughness": dice.uniform(0, 1) ** 2 * _by_kind(malignant, 0.22, 0.1),
        "edge_mm": _by_kind(malignant, dice.uniform(0.25, 1.1), dice.uniform(0.2, 0.8)),
        "spiculated": dice.chance(_by_kind(malignant, 0.4, 0.05)) * (radius_mm > 1.75).float(),
        "spicule_present": dice.chance(dice.uniform(0.3, 0.9)[:, None], SPICULES),
        "spicule_angle": dice.uniform(0, FULL_TURN, SPICULES),
        "spicule_reach": dice.uniform(1.2, 2.3, SPICULES),
        "spicule_width_mm": dice.uniform(0.3, 0.75, SPICULES),
    }


def _draw_density(dice: Dice, malignant: Tensor) -> dict[str, Tensor]:
    kind, glass, part = dice.uniform(0, 1), _by_kind(malignant, 0.12, 0.06), _by_kind(malignant, 0.22, 0.05)
    ground_glass = (kind < glass).float()
    part_solid = ((kind >= glass) & (kind < glass + part)).float()
    return {
        "ground_glass": ground_glass,
        "part_solid": part_solid,
        "calcified": (1 - ground_glass - part_solid) * dice.chance(_by_kind(malignant, 0.02, 0.22)),
        "calcium_hu": dice.uniform(200, 1000),
        "calcium_pattern": dice.uniform(0, 1),
        "cavity": (1 - ground_glass) * dice.chance(_by_kind(malignant, 0.08, 0.01)),
        "solid_hu": dice.uniform(-40, 110),
        "glass_hu": dice.uniform(-720, -450),
        "core": dice.uniform(0.3, 0.75),
        "grain_hu": dice.uniform(0, 60),
    }


def paint_spicules(nodule: Nodule, dx_NHW: Tensor, dy_NHW: Tensor) -> Tensor:
    """Paint the spicules, thin rays that taper away from the nodule: (N, H, W), 0..1."""
    rays = torch.zeros(torch.broadcast_shapes(dx_NHW.shape, dy_NHW.shape))
    for k in range(nodule.spicule_angle.shape[1]):
        cos, sin = column(nodule.spicule_angle[:, k].cos()), column(nodule.spicule_angle[:, k].sin())
        along, across = dx_NHW * cos + dy_NHW * sin, dy_NHW * cos - dx_NHW * sin
        reach_mm = column(nodule.radius_mm * nodule.spicule_reach[:, k] + 1.4)
        taper = ((along > 0) * (1 - along / reach_mm).clamp(0, 1)).sqrt() * 0.8
        ray = bump((across / column(nodule.spicule_width_mm[:, k])) ** 2) * taper
        rays = torch.maximum(rays, column(nodule.spicule_present[:, k]) * ray)
    return rays


def paint_nodule(nodule: Nodule, dice: Dice, x_NHW: Tensor, y_NHW: Tensor) -> tuple[Tensor, Tensor]:
    """Return the share of nodule in each pixel (0..1) and the nodule's HU, both (N, H, W)."""
    dx, dy = x_NHW - column(nodule.x_mm), y_NHW - column(nodule.y_mm)
    border, from_centre = _outline(nodule, dice, dx, dy)
    softness = column(nodule.edge_mm) * 0.6
    body = torch.sigmoid((border - from_centre) / softness)
    core = torch.sigmoid((column(nodule.core) * border - from_centre) / softness)
    rays = torch.zeros_like(body)
    spiky = torch.nonzero(nodule.spiculated * (1 - nodule.ground_glass))[:, 0]
    rays[spiky] = paint_spicules(pick(nodule, spiky), dx[spiky], dy[spiky])
    whole = (1 - torch.exp(-((nodule.radius_mm / nodule.partial_volume_mm) ** 2))).clamp(0.3, 1)
    return torch.maximum(body, rays) * column(whole), _density(nodule, dice, core)


def _outline(nodule: Nodule, dice: Dice, dx_NHW: Tensor, dy_NHW: Tensor) -> tuple[Tensor, Tensor]:
    """Return, for each pixel, the distances from the centre of the border in its direction and of the pixel itself.

    Both are (N, H, W), in mm of the nodule's ellipse.
    """
    cos, sin = column(nodule.angle.cos()), column(nodule.angle.sin())
    long_axis = (dx_NHW * cos + dy_NHW * sin) / column(1 + nodule.elongation / 2)
    short_axis = (dy_NHW * cos - dx_NHW * sin) / column(1 - nodule.elongation / 2)
    from_centre = (long_axis**2 + short_axis**2).sqrt()
    direction = torch.atan2(dy_NHW, dx_NHW)
    outline = torch.ones_like(from_centre)
    for k, order in enumerate(HARMONICS):
        outline = outline + column(nodule.wave[:, k]) * torch.cos(order * direction + column(nodule.wave_phase[:, k]))
    rough = grain(dice, size_of(from_centre), torch.full((dice.count,), 1.6)) * column(nodule.roughness)
    return column(nodule.radius_mm) * (outline + rough).clamp(0.35, 2), from_centre


def _density(nodule: Nodule, dice: Dice, core_NHW: Tensor) -> Tensor:
    """Paint the nodule's HU (N, H, W): solid, ground-glass, part-solid, hollow, or with one of 4 calcium patterns."""
    shape = size_of(core_NHW)
    glass, part = column(nodule.ground_glass), column(nodule.part_solid)
    solid_hu, glass_hu = column(nodule.solid_hu), column(nodule.glass_hu)
    hu = (1 - glass - part) * solid_hu + glass * glass_hu + part * (glass_hu + (solid_hu - glass_hu) * core_NHW)
    hu = hu + grain(dice, shape, torch.full((dice.count,), 1.2)) * column(nodule.grain_hu)
    pattern = column(nodule.calcium_pattern)
    popcorn = torch.sigmoid(3 * grain(dice, shape, torch.full((dice.count,), 1.8)))
    calcium = torch.where(pattern < 0.45, 1.0, torch.where(pattern < 0.7, popcorn, core_NHW))
    calcium = torch.where(pattern < 0.88, calcium, 1 - core_NHW)
    hu = hu + column(nodule.calcified * nodule.calcium_hu) * calcium
    return hu - column(nodule.cavity) * core_NHW * (hu + 850)


def paint_attached_vessel(nodule: Nodule, x_NHW: Tensor, y_NHW: Tensor) -> Tensor:
    """Paint the vessel that runs into some nodules: (N, H, W), 0..1."""
    dx, dy = x_NHW - column(nodule.x_mm), y_NHW - column(nodule.y_mm)
    cos, sin = column(nodule.attached_angle.cos()), column(nodule.attached_angle.sin())
    along, across = dx * cos + dy * sin, dy * cos - dx * sin + column(nodule.attached_bend_per_mm) * dx**2
    tube = bump((across / column(nodule.attached_width_mm)) ** 2)
    return column(nodule.attached) * tube * (along > -1.4)


def insert_nodule(scene_NHW: Tensor, share_NHW: Tensor, hu_NHW: Tensor, cavity: Tensor) -> Tensor:
    """Return the scene with the nodule inserted.

    A nodule adds density and does not hide denser tissue. A nodule with a cavity replaces the tissue instead, so that
    the cavity is hollow.
    """
    filled = torch.where(column(cavity) > 0, hu_NHW, torch.maximum(hu_NHW, scene_NHW))
    return scene_NHW * (1 - share_NHW) + filled * share_NHW
