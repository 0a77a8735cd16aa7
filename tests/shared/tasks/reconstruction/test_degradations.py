"""Degradations and classical restorations: known operators with known results."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from wardround.tasks.reconstruction.classical import (
    bicubic,
    classical_start,
    diffusion,
    non_local_means,
    total_variation,
    tv_restored,
    wiener,
)
from wardround.tasks.reconstruction.degradations import (
    KINDS,
    Degradation,
    SeededNumbers,
    correlated_noise,
    degrade,
    gaussian_blur,
    numbers_of,
)
from wardround.tasks.reconstruction.image_quality import psnr_db, ssim, to_8_bit


def scene(side: int = 64, count: int = 1) -> torch.Tensor:
    """A bright disc and a bar on a dark ground, a little soft: (N, 1, H, W), grey values."""
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    disc = torch.sigmoid((side / 5 - ((x - side * 0.4) ** 2 + (y - side * 0.5) ** 2).sqrt()) * 1.5)
    bar = torch.sigmoid((3 - (x - side * 0.8).abs()) * 1.5)
    return (40 + 120 * disc + 70 * bar).clamp(0, 255).round()[None, None].repeat(count, 1, 1, 1)


def test_noise_has_the_deviation_that_the_dose_gives_and_half_the_dose_has_more() -> None:
    grey = torch.full((4, 1, 128, 128), 128.0)
    for dose in (0.1, 0.5):
        degradation = Degradation(kind="low-dose", dose=dose)
        noise = degrade(grey, degradation, SeededNumbers(1)).observed_N1HW - grey
        assert float(noise.std()) == pytest.approx(4.5 * math.sqrt(1 / dose - 1), rel=0.03)


def test_noise_is_correlated_as_of_filtered_back_projection_little_at_the_lowest_frequencies() -> None:
    noise = correlated_noise((8, 1, 128, 128), SeededNumbers(2))
    power = torch.fft.rfft2(noise).abs().square().mean((0, 1))
    low, peak, high = float(power[1:3, 1:3].mean()), float(power[24:28, 1:6].mean()), float(power[60:64, 1:6].mean())
    assert low < 0.25 * peak and high < peak
    assert float(noise.std()) == pytest.approx(1, rel=0.02)


def test_lower_resolution_is_the_mean_of_blocks_and_bicubic_gives_a_plane_back() -> None:
    ramp = torch.arange(64.0).repeat(64, 1)[None, None] * 2
    small = degrade(ramp, Degradation(kind="super-resolution", factor=4), SeededNumbers(0)).observed_N1HW
    assert torch.equal(small[0, 0, 0], torch.arange(16.0) * 8 + 3)
    assert float((bicubic(small, 4) - ramp)[..., 8:-8].abs().max()) < 0.5


def test_the_share_that_is_missing_is_about_what_was_asked_and_what_is_known_stays() -> None:
    images = scene(128, 16)
    degraded = degrade(images, Degradation(kind="missing", missing=0.3), SeededNumbers(3))
    missing = 1 - float(degraded.known_N1HW.mean())
    assert 0.15 < missing < 0.4
    assert torch.equal(degraded.observed_N1HW, images * degraded.known_N1HW)
    filled = diffusion(degraded.observed_N1HW, degraded.known_N1HW)
    assert torch.equal(filled * degraded.known_N1HW, degraded.observed_N1HW)


@pytest.mark.parametrize("kind", KINDS)
def test_every_classical_start_is_better_than_what_was_observed(kind) -> None:
    image = scene()
    degradation = Degradation(kind=kind)
    degraded = degrade(image, degradation, SeededNumbers(4))
    start = classical_start(degraded, degradation)
    nearest = torch.nn.functional.interpolate(degraded.observed_N1HW, image.shape[-2:])
    assert float(psnr_db(start, image)) > float(psnr_db(nearest, image)) + 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_how_an_image_is_degraded_depends_on_that_image_alone(kind) -> None:
    images = torch.cat([scene(), scene().flip(3), scene().flip(2)])
    degradation = Degradation(kind=kind)
    alone = degrade(images[1:2], degradation, numbers_of(images[1].numpy())).observed_N1HW
    again = degrade(images[1:2], degradation, numbers_of(images[1].numpy().copy())).observed_N1HW
    assert torch.equal(alone, again)
    if kind in ("low-dose", "missing"):
        other = degrade(images[1:2], degradation, numbers_of(images[2].numpy())).observed_N1HW
        assert not torch.equal(alone, other)
    else:  # nothing random in it
        assert torch.equal(alone, degrade(images, degradation, SeededNumbers(0)).observed_N1HW[1:2])


def test_non_local_means_leaves_a_flat_image_and_is_the_same_alone_and_in_company() -> None:
    flat = torch.full((1, 1, 40, 48), 77.0)
    torch.testing.assert_close(non_local_means(flat, 10.0, 0.7), flat)
    noisy = scene(48, 2) + 10 * torch.randn(2, 1, 48, 48, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(non_local_means(noisy, 10.0, 0.7)[1:], non_local_means(noisy[1:], 10.0, 0.7))


def test_total_variation_of_no_weight_keeps_the_image_and_of_much_flattens_it() -> None:
    image = scene()
    kept = total_variation(image, 1e-9, lambda x: x, image, 0.25)
    torch.testing.assert_close(kept, image, atol=0.01, rtol=0)
    flat = total_variation(image, 1e4, lambda x: x, image, 0.25)
    assert float(flat.std()) < 0.5 * float(image.std())


def test_total_variation_restores_a_piecewise_flat_image_from_a_quarter_of_its_size_better_than_bicubic() -> None:
    image, degradation = scene(), Degradation(kind="super-resolution", factor=4)
    degraded = degrade(image, degradation, SeededNumbers(0))
    restored = to_8_bit(tv_restored(degraded, degradation, 0.2))
    assert float(psnr_db(restored, image)) > float(psnr_db(bicubic(degraded.observed_N1HW, 4), image)) + 0.3


def test_a_wiener_filter_sharpens_what_a_blur_softened_and_keeps_the_mean() -> None:
    image = scene()
    blurred = gaussian_blur(image, 1.5)
    restored = wiener(blurred, 1.5, 3e-3)
    assert float(psnr_db(restored, image)) > float(psnr_db(blurred, image)) + 2
    assert float(restored.mean()) == pytest.approx(float(image.mean()), abs=0.3)


def test_quality_of_the_image_itself_is_the_best_and_of_a_known_error_known() -> None:
    image = scene()
    assert float(psnr_db(image, image)) == 100.0
    assert float(ssim(image, image)) == pytest.approx(1, abs=1e-5)
    assert float(psnr_db(image + 2.55, image)) == pytest.approx(40, abs=1e-3)
    noisy = image + torch.from_numpy(np.random.default_rng(0).normal(0, 20, image.shape)).float()
    assert 0 < float(ssim(noisy, image)) < 0.7
