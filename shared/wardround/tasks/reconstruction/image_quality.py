"""Quality of restored 8-bit images relative to the true ones: peak signal-to-noise ratio and structural similarity.

Shapes: N images, C channels, H rows, W columns. Grey values run from 0 to 255.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

PEAK = 255.0
PERFECT_DB = 100.0  # for an image without error, whose ratio would be infinite
WINDOW_DEVIATION_PX = 1.5
WINDOW_REACH_PX = 5
STABLE_LUMINANCE, STABLE_CONTRAST = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2


def to_8_bit(images_NCHW: Tensor) -> Tensor:
    """Round grey values and clamp them to 0..255, as a file would store them; float32."""
    return images_NCHW.float().round().clamp(0, PEAK)


def psnr_db(restored_NCHW: Tensor, true_NCHW: Tensor) -> Tensor:
    """Return 10 log10(255^2 / mean squared error) of each image in dB, (N,), at most 100."""
    squared_N = (restored_NCHW.double() - true_NCHW.double()).square().flatten(1).mean(1)
    return (10 * torch.log10(PEAK**2 / squared_N.clamp(min=PEAK**2 / 10 ** (PERFECT_DB / 10)))).float()


def ssim(restored_NCHW: Tensor, true_NCHW: Tensor) -> Tensor:
    """Return the mean structural similarity of each image, (N,), at most 1; differentiable.

    Uses Gaussian windows of 11 x 11 pixels with a standard deviation of 1.5, except at the border, where they do not
    fit (Z. Wang et al., IEEE Trans. Image Processing 13(4), 2004).
    """
    channels = restored_NCHW.shape[1]
    taps = torch.arange(-WINDOW_REACH_PX, WINDOW_REACH_PX + 1, device=restored_NCHW.device)
    taps = torch.exp(-(taps**2) / (2 * WINDOW_DEVIATION_PX**2))
    taps = (taps / taps.sum()).to(restored_NCHW.dtype)

    def blurred(images: Tensor) -> Tensor:
        across = F.conv2d(images, taps.view(1, 1, 1, -1).repeat(channels, 1, 1, 1), groups=channels)
        return F.conv2d(across, taps.view(1, 1, -1, 1).repeat(channels, 1, 1, 1), groups=channels)

    one, other = blurred(restored_NCHW), blurred(true_NCHW)
    one_variance = blurred(restored_NCHW.square()) - one.square()
    other_variance = blurred(true_NCHW.square()) - other.square()
    covariance = blurred(restored_NCHW * true_NCHW) - one * other
    luminance = (2 * one * other + STABLE_LUMINANCE) / (one.square() + other.square() + STABLE_LUMINANCE)
    structure = (2 * covariance + STABLE_CONTRAST) / (one_variance + other_variance + STABLE_CONTRAST)
    return (luminance * structure).flatten(1).mean(1)
