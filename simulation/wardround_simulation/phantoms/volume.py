"""Paint a stack of axial slices through one phantom lung with one or two nodules.

The anatomy is that of the crops (`wardround.phantoms`). Shapes: S slices, H rows, W columns. Positions are in mm in the
patient's coordinates, relative to the middle of the stack (x to the patient's left, y to the back, z to the head).
Values are in Hounsfield units.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from wardround.phantoms.anatomy import (
    FULL_TURN,
    Dice,
    Vessels,
    Wall,
    bump,
    column,
    draw_texture,
    draw_vessels,
    draw_wall,
    paint_texture,
    paint_vessels,
    paint_wall_tissue,
    spread_over,
)
from wardround.phantoms.nodule import Nodule, insert_nodule, paint_attached_vessel, paint_nodule
from wardround.phantoms.scanner import Scanner, acquire
from wardround_simulation.phantoms.cases import Kind, draw_nodule_of

SLICE_PX = 256
PATCH_PX = 96  # vessels and nodules are painted in patches, because each covers only a small part of a slice
SCATTERED_PATCHES = 6
CHEST_RIBS = 9
AIR_HU = -1000.0
RIB_SLANT = 0.6  # mm that a rib moves along the wall per mm of height
MEDIASTINUM = ((19.0, 44.0, 16.0, 220.0), (15.0, 18.0, 11.0, 60.0))  # vertebra, aorta: mm behind and down, radius, HU
ROUGH_MM = 6.0  # above this radius a nodule's roughness in mm stays constant


@dataclass(frozen=True, kw_only=True)
class Site:
    """One hospital's scanner: sizes in mm, and the parameters of its imaging chain (`wardround.phantoms.scanner`)."""

    spacing_mm: tuple[float, float]
    thickness_mm: float
    slices: int
    blur_px: tuple[float, float]
    sharpening: float
    noise_hu: tuple[float, float]
    noise_blur_px: float
    streak: float


@dataclass(frozen=True, kw_only=True)
class MarkedNodule:
    """The centre of a nodule, in mm from the middle of the stack, its diameter, and whether it is malignant."""

    x_mm: float
    y_mm: float
    z_mm: float
    diameter_mm: float
    malignant: bool


@dataclass(frozen=True, kw_only=True)
class PhantomVolume:
    """A painted stack: `hu_SHW` float32, from the feet up, with pixel spacing and slice distance in mm."""

    hu_SHW: Tensor
    spacing_mm: float
    thickness_mm: float
    nodules: tuple[MarkedNodule, ...]


def paint_volume(site: Site, kinds: tuple[Kind, ...], seed: int) -> PhantomVolume:
    """Paint one patient of this site with one nodule of each of `kinds`."""
    one = Dice(1, torch.Generator().manual_seed(seed))
    dice = Dice(site.slices, one.generator)
    spacing_mm = float(one.uniform(*site.spacing_mm))
    heights_mm = (torch.arange(site.slices) - (site.slices - 1) / 2) * site.thickness_mm
    steps_mm = (torch.arange(SLICE_PX) - (SLICE_PX - 1) / 2) * spacing_mm
    x_1HW, y_1HW = steps_mm[None, None, :], steps_mm[None, :, None]

    chest = _draw_chest(one, side_mm=SLICE_PX * spacing_mm)
    scene = paint_texture(spread_over(draw_texture(one), site.slices), dice, (SLICE_PX, SLICE_PX))
    nodules = _place_nodules(one, chest, kinds, site.thickness_mm)
    centres = [(float(n.x_mm), float(n.y_mm)) for n, _ in nodules] + chest.points_inside(one, SCATTERED_PATCHES)
    for x_mm, y_mm in centres:
        _add_vessels(scene, one, spacing_mm, heights_mm, x_mm, y_mm)
    for nodule, _ in nodules:
        _add_attached_vessel(scene, nodule, spacing_mm)
    chest.enclose(scene, dice, heights_mm, x_1HW, y_1HW)
    for nodule, z_mm in nodules:
        _add_nodule(scene, dice, nodule, z_mm, spacing_mm, heights_mm, site.thickness_mm)
    hu = acquire(spread_over(_draw_site_scanner(one, site), site.slices), dice, scene)
    marks = tuple(
        MarkedNodule(
            x_mm=float(n.x_mm),
            y_mm=float(n.y_mm),
            z_mm=z_mm,
            diameter_mm=2 * float(n.radius_mm),
            malignant=bool(n.malignant),
        )
        for n, z_mm in nodules
    )
    return PhantomVolume(hu_SHW=hu, spacing_mm=spacing_mm, thickness_mm=site.thickness_mm, nodules=marks)


def _draw_site_scanner(one: Dice, site: Site) -> Scanner:
    return Scanner(
        blur_px=one.uniform(*site.blur_px),
        sharpening=torch.full((1,), site.sharpening),
        noise_hu=one.uniform(*site.noise_hu),
        noise_blur_px=torch.full((1,), site.noise_blur_px),
        streak=torch.full((1,), site.streak),
        streak_angle=0.1 * one.normal(),
    )


@dataclass(frozen=True, kw_only=True)
class Chest:
    """The lung as an ellipse in the middle of the picture, the wall around it, and the distance of the skin."""

    half_width_mm: float
    half_depth_mm: float
    wall: Wall
    wall_thickness_mm: float
    medial: float  # +1 when the mediastinum is to the right of the picture, -1 when it is to the left
    taper: float  # relative shrinkage of the lung per mm towards the head
    wobble: tuple[float, float, float, float]  # strength and phase of the outline's second and third harmonic

    def depth(self, x_mm: Tensor, y_mm: Tensor, z_mm: Tensor) -> Tensor:
        """Return the approximate distance in mm of points outside the lung's surface; negative inside the lung."""
        width, depth = self.half_width_mm * (1 - self.taper * z_mm), self.half_depth_mm * (1 - self.taper * z_mm)
        turn = torch.atan2(y_mm, x_mm)
        second, second_phase, third, third_phase = self.wobble
        outline = 1 + second * torch.cos(2 * turn + second_phase) + third * torch.cos(3 * turn + third_phase)
        radius = ((x_mm / width) ** 2 + (y_mm / depth) ** 2).sqrt() / outline
        return (radius - 1) * (width + depth) / 2

    def points_inside(self, one: Dice, count: int) -> list[tuple[float, float]]:
        """Return random points (x, y) in mm, spread evenly over the lung."""
        out, turn = one.uniform(0, 1, count)[0].sqrt() * 0.9, one.uniform(0, FULL_TURN, count)[0]
        x_mm, y_mm = out * turn.cos() * self.half_width_mm, out * turn.sin() * self.half_depth_mm
        return list(zip(x_mm.tolist(), y_mm.tolist(), strict=True))

    def enclose(self, scene_SHW: Tensor, dice: Dice, heights_mm: Tensor, x_1HW: Tensor, y_1HW: Tensor) -> None:
        """Paint wall, ribs, mediastinum and the air around the body over the scene, in place."""
        depth = self.depth(x_1HW, y_1HW, column(heights_mm))
        along = torch.atan2(y_1HW, x_1HW * self.medial) * (self.half_width_mm + self.half_depth_mm) / 2
        along = along + RIB_SLANT * column(heights_mm)
        tissue = paint_wall_tissue(spread_over(self.wall, dice.count), dice, depth, along)
        skin_mm = self.wall_thickness_mm + 400 * ((x_1HW * self.medial / self.half_width_mm).clamp(0, 1) ** 2)
        outside = torch.sigmoid((depth - skin_mm) / 0.7)
        tissue = tissue * (1 - outside) + AIR_HU * outside
        for behind_mm, down_mm, radius_mm, added_hu in MEDIASTINUM:  # the organs deep beside the lung
            middle_mm = self.medial * (self.half_width_mm + behind_mm)
            distance_mm = ((x_1HW - middle_mm) ** 2 + (y_1HW - down_mm) ** 2).sqrt()
            tissue = tissue + added_hu * torch.sigmoid((radius_mm - distance_mm) / 0.7)
        share = torch.sigmoid(depth / 0.56)
        scene_SHW.mul_(1 - share).add_(tissue * share)


def _draw_chest(one: Dice, side_mm: float) -> Chest:
    half_width_mm, half_depth_mm = float(one.uniform(0.27, 0.34)) * side_mm, float(one.uniform(0.34, 0.42)) * side_mm
    around_mm = math.pi * (half_width_mm + half_depth_mm) / 2
    # The ribs lie along the side of the body. There are none at the mediastinum, which is at angle 0 of `along`.
    along_mm = torch.linspace(0.35, 1.65, CHEST_RIBS)[None] * around_mm + one.uniform(-4, 4, CHEST_RIBS)
    along_mm = (along_mm + around_mm) % (2 * around_mm) - around_mm
    wall = replace(
        draw_wall(one, one.uniform(0, 0), 1.0),
        fat_depth_mm=one.uniform(9, 14),
        rib_present=one.chance(0.85, CHEST_RIBS),
        rib_along_mm=along_mm,
        rib_depth_mm=one.uniform(3.5, 7, CHEST_RIBS),
        rib_half_length_mm=one.uniform(5, 12, CHEST_RIBS),
        rib_half_width_mm=one.uniform(1.8, 3.2, CHEST_RIBS),
        rib_hu=one.uniform(350, 900, CHEST_RIBS),
    )
    return Chest(
        half_width_mm=half_width_mm,
        half_depth_mm=half_depth_mm,
        wall=wall,
        wall_thickness_mm=float(one.uniform(14, 26)),
        medial=1.0 if float(one.uniform(0, 1)) < 0.5 else -1.0,
        taper=float(one.uniform(0, 0.004)),
        wobble=(
            float(one.uniform(0, 0.05)),
            float(one.uniform(0, FULL_TURN)),
            float(one.uniform(0, 0.05)),
            float(one.uniform(0, FULL_TURN)),
        ),
    )


def _place_nodules(one: Dice, chest: Chest, kinds: tuple[Kind, ...], thickness_mm: float) -> list[tuple[Nodule, float]]:
    """Return each nodule with its height in mm.

    Some nodules are on the wall and the others are free in the lung. Two nodules are on opposite sides.
    """
    placed = []
    turn = float(one.uniform(0, FULL_TURN))
    for kind in kinds:
        nodule = draw_nodule_of(one, kind)
        radius_mm = float(nodule.radius_mm)
        on_wall = float(one.uniform(0, 1)) < kind.on_wall
        gap_mm = radius_mm * float(one.uniform(0.4, 1.2)) if on_wall else radius_mm + float(one.uniform(2, 30))
        out = max(0.15, 1 - gap_mm / ((chest.half_width_mm + chest.half_depth_mm) / 2))
        x_mm, y_mm = out * math.cos(turn) * chest.half_width_mm, out * math.sin(turn) * chest.half_depth_mm
        rough = nodule.roughness * min(1.0, ROUGH_MM / radius_mm)
        nodule = replace(nodule, x_mm=torch.tensor([x_mm]), y_mm=torch.tensor([y_mm]), roughness=rough)
        placed.append((nodule, float(one.uniform(-0.6, 0.6)) * thickness_mm))
        turn += math.pi + float(one.uniform(-0.5, 0.5))
    return placed


def _patch(spacing_mm: float, x_mm: float, y_mm: float) -> tuple[slice, slice, Tensor, Tensor]:
    """Return the patch around a point: its rows and columns, and the positions of its pixels.

    The positions are in mm from the picture's middle: to the right (1, 1, w), then down (1, h, 1).
    """
    spans = []
    for at_mm in (y_mm, x_mm):
        first = min(max(round(at_mm / spacing_mm + (SLICE_PX - PATCH_PX) / 2), 0), SLICE_PX - PATCH_PX)
        spans.append(slice(first, first + PATCH_PX))
    down, right = ((torch.arange(s.start, s.stop) - (SLICE_PX - 1) / 2) * spacing_mm for s in spans)
    return spans[0], spans[1], right[None, None, :], down[None, :, None]


def _add_vessels(scene_SHW: Tensor, one: Dice, spacing_mm: float, heights_mm: Tensor, x_mm: float, y_mm: float) -> None:
    """Paint a clump of vessels around a point, in place.

    The clump slants through the slices and fades out at the border of its patch.
    """
    vessels = _only_present(draw_vessels(one, reach_mm=22))
    slant_x, slant_y = float(one.uniform(-0.4, 0.4)), float(one.uniform(-0.4, 0.4))
    rows, columns, right_mm, down_mm = _patch(spacing_mm, x_mm, y_mm)
    x_SHW = (right_mm - x_mm - slant_x * column(heights_mm)).expand(-1, PATCH_PX, -1)
    y_SHW = (down_mm - y_mm - slant_y * column(heights_mm)).expand(-1, -1, PATCH_PX)
    share = paint_vessels(spread_over(vessels, len(heights_mm)), x_SHW, y_SHW)
    reach_mm = spacing_mm * PATCH_PX / 2
    fade = (4 * bump(((right_mm - x_mm) ** 2 + (down_mm - y_mm) ** 2) / reach_mm**2 * 8)).clamp(max=1)
    part = scene_SHW[:, rows, columns]
    part.add_((column(vessels.contrast_hu) - part) * share * fade * column(vessels.opacity))


def _only_present(vessels: Vessels) -> Vessels:
    """Return one picture's vessels without the absent ones, which need not be painted."""
    arcs, dots = vessels.present[0] > 0, vessels.dot_present[0] > 0
    kept = {}
    for name in (field.name for field in fields(vessels)):
        values = getattr(vessels, name)
        is_of_dots = name.startswith("dot_")
        if values.dim() == 2 and not name.startswith("mass_"):
            kept[name] = values[:, dots if is_of_dots else arcs]
    return replace(vessels, **kept)


def _add_attached_vessel(scene_SHW: Tensor, nodule: Nodule, spacing_mm: float) -> None:
    rows, columns, right_mm, down_mm = _patch(spacing_mm, float(nodule.x_mm), float(nodule.y_mm))
    share = paint_attached_vessel(nodule, right_mm.expand(1, PATCH_PX, -1), down_mm.expand(1, -1, PATCH_PX))
    part = scene_SHW[:, rows, columns]
    part.add_((20 - part) * share * 0.7)


def _add_nodule(
    scene_SHW: Tensor,
    dice: Dice,
    nodule: Nodule,
    z_mm: float,
    spacing_mm: float,
    heights_mm: Tensor,
    thickness_mm: float,
) -> None:
    """Paint a nodule in place, as a ball.

    Each slice shows the circle in which it cuts the ball, and fainter if the ball fills only part of the slice.
    """
    radius_mm = float(nodule.radius_mm)
    from_centre_mm = (heights_mm - z_mm).abs()
    nearest_mm = (from_centre_mm - thickness_mm / 2).clamp(min=0)
    filled = ((radius_mm - from_centre_mm + thickness_mm / 2) / min(thickness_mm, 2 * radius_mm)).clamp(0, 1)
    cut_mm = torch.where(from_centre_mm < radius_mm, from_centre_mm, nearest_mm).clamp(max=radius_mm)
    shown = spread_over(nodule, len(heights_mm))
    shown = replace(shown, radius_mm=(radius_mm**2 - cut_mm**2).sqrt().clamp(min=0.3))
    rows, columns, right_mm, down_mm = _patch(spacing_mm, float(nodule.x_mm), float(nodule.y_mm))
    grid = [(g.expand(len(heights_mm), PATCH_PX, PATCH_PX)) for g in (right_mm, down_mm)]
    share, hu = paint_nodule(shown, dice, *grid)
    share = share * column(filled * (from_centre_mm < radius_mm + thickness_mm / 2))
    part = scene_SHW[:, rows, columns]
    part.copy_(insert_nodule(part, share, hu, shown.cavity))
