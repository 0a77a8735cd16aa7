"""The phantom crops: repeatable, balanced, in range, and with the anatomy's differences between classes."""

from __future__ import annotations

import torch

from wardround.phantoms.anatomy import Dice, bump, draw_wall, grain, paint_wall, pick, spread_over
from wardround.phantoms.crops import CONCEPTS, CROP_PX, generate_crops
from wardround.phantoms.nodule import draw_nodule, paint_nodule
from wardround.phantoms.scanner import blur


def test_the_same_seed_gives_the_same_crops_and_another_seed_gives_others():
    first, again, other = generate_crops(120, seed=3), generate_crops(120, seed=3), generate_crops(120, seed=4)
    assert torch.equal(first.images_NHW, again.images_NHW)
    assert torch.equal(first.concepts_NK, again.concepts_NK)
    assert not torch.equal(first.images_NHW, other.images_NHW)


def test_the_first_crops_do_not_depend_on_how_many_follow():
    few, many = generate_crops(30, seed=3), generate_crops(230, seed=3)
    assert torch.equal(few.images_NHW, many.images_NHW[:30])
    assert torch.equal(few.labels_N, many.labels_N[:30])


def test_crops_are_grey_pictures_of_both_classes_that_are_not_blank():
    crops = generate_crops(300, seed=8)
    assert crops.images_NHW.dtype == torch.uint8
    assert crops.images_NHW.shape == (300, CROP_PX, CROP_PX)
    assert crops.concepts_NK.shape == (300, len(CONCEPTS))
    assert torch.isfinite(crops.concepts_NK).all()
    assert 0.4 < crops.labels_N.float().mean() < 0.6
    assert (crops.images_NHW.float().std((1, 2)) > 1).float().mean() > 0.99
    assert ((crops.spacing_mm_N >= 0.55) & (crops.spacing_mm_N < 0.85)).all()


def test_malignant_phantoms_are_larger_and_spikier_and_calcify_less():
    crops = generate_crops(500, seed=5)
    malignant, benign = crops.concepts_NK[crops.labels_N == 1], crops.concepts_NK[crops.labels_N == 0]
    size, spikes, calcium = CONCEPTS.index("log_diameter"), CONCEPTS.index("spiculation"), CONCEPTS.index("calcified")
    assert malignant[:, size].mean() > benign[:, size].mean() + 0.4
    assert malignant[:, spikes].mean() > benign[:, spikes].mean() + 0.2
    assert malignant[:, calcium].mean() < benign[:, calcium].mean() - 0.1


def test_the_painted_nodule_covers_about_the_disc_of_its_radius():
    dice = Dice(60, torch.Generator().manual_seed(1))
    nodule = draw_nodule(dice, torch.zeros(60), cut=torch.zeros(60))
    steps_mm = (torch.arange(96) - 47.5) * 0.5
    grid = (steps_mm[None, None, :].expand(60, 96, 96), steps_mm[None, :, None].expand(60, 96, 96))
    share, hu = paint_nodule(nodule, dice, *grid)
    assert share.min() >= 0 and share.max() <= 1 and torch.isfinite(hu).all()
    plain = (nodule.spiculated == 0) & (nodule.radius_mm > 2.5)
    area_mm2 = (share > 0.5).float().sum((1, 2))[plain] * 0.25
    disc_mm2 = torch.pi * nodule.radius_mm[plain] ** 2
    assert ((area_mm2 / disc_mm2) > 0.5).all() and ((area_mm2 / disc_mm2) < 1.7).all()


def test_grain_has_mean_zero_deviation_one_and_is_longer_along_its_streaks():
    dice = Dice(40, torch.Generator().manual_seed(2))
    field = grain(dice, (64, 64), torch.full((40,), 0.6), torch.full((40,), 5.0), torch.zeros(40))
    assert torch.allclose(field.mean((1, 2)), torch.zeros(40), atol=1e-5)
    assert torch.allclose(field.std((1, 2)), torch.ones(40), atol=1e-3)
    along = (field[:, :, 1:] * field[:, :, :-1]).mean()
    across = (field[:, 1:] * field[:, :-1]).mean()
    assert along > across + 0.2


def test_bump_follows_a_gaussian_and_ends():
    squared = torch.linspace(0, 20, 200)
    assert (bump(squared) - torch.exp(-squared / 2)).abs().max() < 0.08
    assert (bump(squared)[squared > 8] == 0).all()


def test_a_part_picked_or_spread_is_the_part_of_those_pictures():
    dice = Dice(5, torch.Generator().manual_seed(3))
    wall = draw_wall(dice, torch.full((5,), 4.0), 1.0)
    one = pick(wall, torch.tensor([2]))
    assert torch.equal(spread_over(one, 7).rib_hu, wall.rib_hu[[2] * 7])


def test_a_wall_fills_what_lies_behind_it_and_nothing_in_front():
    dice = Dice(20, torch.Generator().manual_seed(4))
    wall = draw_wall(dice, torch.full((20,), 10.0), 1.0)
    points = torch.tensor([-20.0, 0.0, 60.0])
    x, y = wall.angle.cos()[:, None] * points, wall.angle.sin()[:, None] * points
    share, _ = paint_wall(wall, dice, x[:, None], y[:, None])
    assert (share[:, 0, :2] < 0.01).all() and (share[:, 0, 2] > 0.99).all()


def test_blur_keeps_the_mean_of_a_flat_picture_and_lowers_noise():
    pictures = torch.randn(4, 32, 32, generator=torch.Generator().manual_seed(5))
    assert torch.allclose(blur(torch.full((2, 8, 8), 7.0), torch.full((2,), 0.8)), torch.full((2, 8, 8), 7.0))
    assert (blur(pictures, torch.full((4,), 0.8)).std((1, 2)) < pictures.std((1, 2))).all()
