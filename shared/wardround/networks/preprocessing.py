"""Preprocessing of images for a network: crop, contrast and views, as plain torch modules that export to ONNX.

Shapes: N images, C channels, H rows, W columns. Grey values run from 0 to 255, regardless of the window. No statistics
of a data set are used: each image is normalised by itself, so a site's scanner settings neither matter nor leak.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GREY_LEVELS = 256
NO_DATA_LEVELS = 3  # grey 0, 1 and 2 are padding or air below the window, not tissue: they do not affect the threshold
SMALLEST_CLASS = 0.02
LARGEST_CLASS = 0.995
SMALLEST_CONTRAST = 12.0  # prevents the amplification of noise in a flat image
LUNG_LEVEL = -0.3  # the darker class ends at -0.3 and the brighter one at 0.7
DARKEST, BRIGHTEST = -1.5, 4.0
VIEWS = 8


class CentreCrop(nn.Module):
    """Crops images_NCHW to the middle `size` x `size` pixels; smaller images are padded by repeating their border."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """images_NCHW of any H and W, dtype kept -> (N, C, size, size)."""
        height, width = images_NCHW.shape[-2:]
        missing_rows, missing_columns = max(0, self.size - height), max(0, self.size - width)
        if missing_rows or missing_columns:
            left, top = missing_columns // 2, missing_rows // 2
            margins = (left, missing_columns - left, top, missing_rows - top)
            images_NCHW = F.pad(images_NCHW, margins, mode="replicate")
            height, width = height + missing_rows, width + missing_columns
        top, left = (height - self.size) // 2, (width - self.size) // 2
        return images_NCHW[..., top : top + self.size, left : left + self.size]


class OtsuNormalise(nn.Module):
    """Normalises each channel of each image by Otsu's split into dark (lung) and bright (tissue) pixels.

    The mean of the dark class is mapped to -0.3 and that of the bright class to 0.7; the result is clipped. It hardly
    depends on the window, as long as the window keeps lung and tissue apart. The threshold maximises the variance
    between the two classes (N. Otsu, IEEE Trans. SMC 9(1), 1979) over the histogram without the padding levels.
    """

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """images_NCHW, grey 0..255, uint8 or float -> float32 of the same shape in [-1.8, 3.7]."""
        images_NCHW = images_NCHW.float()
        count, channels = images_NCHW.shape[:2]
        pixels_BP = images_NCHW.reshape(count * channels, -1)
        dark_B1, bright_B1 = _otsu_means(_histogram(pixels_BP))
        contrast_B1 = (bright_B1 - dark_B1).clamp(min=SMALLEST_CONTRAST)
        scaled_BP = ((pixels_BP - dark_B1) / contrast_B1).clamp(DARKEST, BRIGHTEST) + LUNG_LEVEL
        return scaled_BP.reshape(images_NCHW.shape)


def darker_class_mean(images_NCHW: Tensor) -> Tensor:
    """Grey values 0..255 (N, C, H, W) -> the mean of the darker of Otsu's two classes (lung in CT), (N, C, 1, 1)."""
    count, channels = images_NCHW.shape[:2]
    dark_B1, _ = _otsu_means(_histogram(images_NCHW.float().reshape(count * channels, -1)))
    return dark_B1.reshape(count, channels, 1, 1)


def _histogram(pixels_BP: Tensor) -> Tensor:
    """Share of each grey level in each row (B, 256), without the padding levels; zeros for a row of padding only."""
    levels_BP = pixels_BP.nan_to_num(0.0).round().clamp(0, GREY_LEVELS - 1).long()
    counts_BL = torch.zeros(pixels_BP.shape[0], GREY_LEVELS, dtype=torch.float32, device=pixels_BP.device)
    counts_BL = counts_BL.scatter_add(1, levels_BP, torch.ones_like(pixels_BP))
    counts_BL = counts_BL * (torch.arange(GREY_LEVELS, device=pixels_BP.device) >= NO_DATA_LEVELS).float()
    return counts_BL / counts_BL.sum(1, keepdim=True).clamp(min=1)


def _otsu_means(histogram_BL: Tensor) -> tuple[Tensor, Tensor]:
    """Means (B, 1) of the classes below and above the threshold that separates them best."""
    levels_L = torch.arange(GREY_LEVELS, dtype=torch.float32, device=histogram_BL.device)
    below_BL = _running_sum(histogram_BL)
    moment_BL = _running_sum(histogram_BL * levels_L)
    total_B1 = moment_BL[:, -1:]
    between_BL = (total_B1 * below_BL - moment_BL) ** 2 / (below_BL * (1 - below_BL)).clamp(min=1e-4)
    allowed_BL = (below_BL >= SMALLEST_CLASS) & (below_BL <= LARGEST_CLASS)
    threshold_B1 = torch.where(allowed_BL, between_BL, torch.zeros_like(between_BL)).argmax(1, keepdim=True)
    share_B1, part_B1 = below_BL.gather(1, threshold_B1), moment_BL.gather(1, threshold_B1)
    return part_B1 / share_B1.clamp(min=1e-6), (total_B1 - part_B1) / (1 - share_B1).clamp(min=1e-6)


def _running_sum(values_BL: Tensor) -> Tensor:
    """Sum along each row in float64, rounded once, which torch does on a CPU anyway.

    Another order or precision of the additions would decide differently between two equally good thresholds, for
    example in an ONNX runtime.
    """
    return values_BL.cumsum(1, dtype=torch.float64).float()


class DihedralViews(nn.Module):
    """The eight flips and quarter turns of square images, so that results do not depend on a slice's orientation."""

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """images_NCHW with H = W -> (8 N, C, H, W): all images in view 0, then all images in view 1, and so on."""
        turned = [images_NCHW]
        for _ in range(3):
            turned.append(turned[-1].transpose(2, 3).flip(2))
        return torch.cat([view for quarter in turned for view in (quarter, quarter.flip(3))])

    @staticmethod
    def average(values_VNK: Tensor) -> Tensor:
        """Mean over the views of (8 N, ...) values in the order of `forward` -> (N, ...)."""
        return values_VNK.reshape(VIEWS, -1, *values_VNK.shape[1:]).mean(0)
