"""Classical restoration without learning: the start that a network corrects, and the baselines that it has to beat.

The methods are bicubic interpolation, non-local means, total variation, a Wiener filter, and diffusion into missing
areas. Each image is restored by itself, from public numbers.

Shapes: N images, one channel, H rows, W columns; grey values 0..255, float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from wardround.tasks.reconstruction.degradations import Degradation, Degraded, gaussian_blur

PATCH_PX, SEARCH_PX = 5, 5  # non-local means: patches of 5 x 5 pixels, up to 5 pixels away
START_BANDWIDTH = 0.7  # bandwidth of non-local means as a start, in units of the noise
SMALLEST_LOG_WEIGHT = -40.0  # smaller weights would be denormal numbers, which are slow
WIENER_NOISE = 3e-3  # ratio of noise to signal
DIFFUSION_STEPS = 120
TV_ITERATIONS = 150


def classical_start(degraded: Degraded, degradation: Degradation) -> Tensor:
    """Return the restoration that the network corrects, (N, 1, H, W).

    The method depends on the kind of degradation: bicubic interpolation, non-local means, a Wiener filter or diffusion.
    """
    observed = degraded.observed_N1HW
    if degradation.kind == "super-resolution":
        return bicubic(observed, degradation.factor)
    if degradation.kind == "low-dose":
        return non_local_means(observed, degradation.noise_grey, START_BANDWIDTH)
    if degradation.kind == "blur":
        return wiener(observed, degradation.blur_px, WIENER_NOISE)
    return diffusion(observed, degraded.known_N1HW)


def to_full_size(degraded: Degraded) -> Tensor:
    """Return the observed image at full size, (N, 1, H, W); pixels of a lower resolution are repeated."""
    return F.interpolate(degraded.observed_N1HW, degraded.known_N1HW.shape[-2:])


def bicubic(small_N1HW: Tensor, factor: int) -> Tensor:
    """Enlarge images `factor` times by bicubic interpolation."""
    larger = F.interpolate(small_N1HW, scale_factor=factor, mode="bicubic", align_corners=False)
    return larger.clamp(0, 255)


def non_local_means(noisy_N1HW: Tensor, noise_grey: float, bandwidth: float) -> Tensor:
    """Denoise by non-local means (A. Buades et al., CVPR 2005).

    Each pixel becomes the mean of the surrounding ones, weighted by the similarity of their patches:
    exp(-max(d^2 - 2 s^2, 0) / (h s)^2) with d^2 the mean squared difference of two patches, s the noise, h the
    bandwidth.
    """
    return torch.cat([_non_local_means(image, noise_grey, bandwidth) for image in noisy_N1HW.split(1)])


def _non_local_means(noisy_11HW: Tensor, noise_grey: float, bandwidth: float) -> Tensor:
    """Denoise one image, which fits into the processor's cache."""
    noisy = noisy_11HW[0, 0]
    rows, columns = noisy.shape
    reach, half = min(SEARCH_PX, rows - 1, columns - 1), PATCH_PX // 2
    margin = reach + half
    wide = F.pad(noisy_11HW, (min(margin, columns - 1, rows - 1),) * 4, mode="reflect")
    wide = F.pad(wide, (margin - min(margin, columns - 1, rows - 1),) * 4, mode="replicate")[0, 0]
    total, weights = noisy.clone(), torch.ones_like(noisy)
    for down in range(-reach, reach + 1):
        for right in range(-reach, reach + 1):
            if (down, right) == (0, 0):
                continue
            there = wide[margin + down :, margin + right :][:rows, :columns]
            patch = wide[reach + down :, reach + right :][: rows + 2 * half, : columns + 2 * half]
            squared = (wide[reach : rows + reach + 2 * half, reach : columns + reach + 2 * half] - patch).square_()
            tall = squared[:rows] + squared[1 : rows + 1] + squared[2 : rows + 2] + squared[3 : rows + 3]
            tall += squared[4 : rows + 4]
            box = tall[:, :columns] + tall[:, 1 : columns + 1] + tall[:, 2 : columns + 2] + tall[:, 3 : columns + 3]
            box += tall[:, 4 : columns + 4]
            excess = box.mul_(1 / PATCH_PX**2).sub_(2 * noise_grey**2).clamp_(min=0)
            weight = excess.mul_(-1 / (bandwidth * noise_grey) ** 2).clamp_(min=SMALLEST_LOG_WEIGHT).exp_()
            weights += weight
            total.addcmul_(weight, there)
    return (total / weights)[None, None]


def total_variation(
    observed_N1HW: Tensor, weight: float, forward: Callable[[Tensor], Tensor], start_N1HW: Tensor, step: float
) -> Tensor:
    """Minimise |forward(x) - observed|^2 / 2 + weight TV(x) over images x, with isotropic total variation.

    The functional is that of L. Rudin et al. (Physica D 60, 1992). Runs 150 steps of the primal-dual method of
    L. Condat (2013) and B. Vu (2013).

    Args:
        forward: The linear operator of the degradation, with norm 1 or less.
        step: Bound on the primal step.
    """
    image = start_N1HW.clone()
    dual = torch.zeros(2, *image.shape, device=image.device)
    sigma = (1 / step - 1) / 8  # step (1 + 8 sigma) <= 1 with |forward| <= 1 and |gradient|^2 <= 8
    for _ in range(TV_ITERATIONS):
        before = image
        with torch.enable_grad():
            guess = image.detach().requires_grad_()
            misfit = 0.5 * (forward(guess) - observed_N1HW).square().sum()
            (pull,) = torch.autograd.grad(misfit, guess)
        image = image - step * (pull + _negative_divergence(dual))
        dual = dual + sigma * _differences(2 * image - before)
        dual = dual / (dual.square().sum(0, keepdim=True).sqrt() / weight).clamp(min=1)
    return image.clamp(0, 255)


def tv_restored(degraded: Degraded, degradation: Degradation, weight: float) -> Tensor:
    """Restore by total variation with the operator of the degradation."""
    observed = degraded.observed_N1HW
    if degradation.kind == "super-resolution":
        factor = degradation.factor  # a mean of factor^2 pixels has norm 1 / factor: scaled up to 1
        return total_variation(
            observed * factor, weight, lambda x: F.avg_pool2d(x, factor) * factor, bicubic(observed, factor), 0.25
        )
    if degradation.kind == "blur":
        start = wiener(observed, degradation.blur_px, WIENER_NOISE)
        return total_variation(observed, weight, lambda x: gaussian_blur(x, degradation.blur_px), start, 0.25)
    known = degraded.known_N1HW
    return total_variation(observed, weight, lambda x: x * known, observed, 0.25)


def wiener(blurred_N1HW: Tensor, deviation_px: float, noise: float) -> Tensor:
    """Undo a Gaussian blur with the Wiener filter for this ratio of noise to signal; borders are reflected."""
    reach = 4 * math.ceil(deviation_px)
    padded = F.pad(blurred_N1HW, (reach,) * 4, mode="reflect")
    rows, columns = padded.shape[-2:]
    squared = torch.fft.fftfreq(rows)[:, None] ** 2 + torch.fft.rfftfreq(columns)[None] ** 2
    transfer = torch.exp(-2 * math.pi**2 * deviation_px**2 * squared).to(padded.device)
    spectrum = torch.fft.rfft2(padded) * transfer / (transfer**2 + noise)
    # The factor keeps the mean of the image unchanged.
    restored = torch.fft.irfft2(spectrum * (1 + noise), s=(rows, columns))
    return restored[..., reach:-reach, reach:-reach].clamp(0, 255)


def diffusion(observed_N1HW: Tensor, known_N1HW: Tensor) -> Tensor:
    """Fill missing areas smoothly from their borders by repeated means of neighbours, from coarse to fine."""
    rows, columns = observed_N1HW.shape[-2:]
    filled, level, weight = observed_N1HW, observed_N1HW * known_N1HW, known_N1HW
    pyramid = [(level, weight)]
    while min(level.shape[-2:]) >= 4:
        level, weight = F.avg_pool2d(level, 2), F.avg_pool2d(weight, 2)
        pyramid.append((level, weight))
    filled = pyramid[-1][0] / pyramid[-1][1].clamp(min=1e-6)
    for level, weight in reversed(pyramid[:-1]):
        coarse = F.interpolate(filled, level.shape[-2:], mode="bilinear", align_corners=False)
        filled = torch.where(weight > 0.5, level / weight.clamp(min=1e-6), coarse)
    known = known_N1HW > 0.5
    for _ in range(DIFFUSION_STEPS // 4):
        padded = F.pad(filled, (1, 1, 1, 1), mode="replicate")
        about = padded[..., :-2, 1:-1] + padded[..., 2:, 1:-1] + padded[..., 1:-1, :-2] + padded[..., 1:-1, 2:]
        filled = torch.where(known, observed_N1HW, about / 4)
    return filled


def _differences(image_N1HW: Tensor) -> Tensor:
    """Return the forward differences down and right, (2, N, 1, H, W), with zeros at the end."""
    down, right = torch.zeros_like(image_N1HW), torch.zeros_like(image_N1HW)
    down[..., :-1, :] = image_N1HW[..., 1:, :] - image_N1HW[..., :-1, :]
    right[..., :-1] = image_N1HW[..., 1:] - image_N1HW[..., :-1]
    return torch.stack([down, right])


def _negative_divergence(dual_2N1HW: Tensor) -> Tensor:
    """Apply the adjoint of `_differences`."""
    down, right = dual_2N1HW
    out = torch.zeros_like(down)
    out[..., :-1, :] -= down[..., :-1, :]
    out[..., 1:, :] += down[..., :-1, :]
    out[..., :-1] -= right[..., :-1]
    out[..., 1:] += right[..., :-1]
    return out
