"""A classifier as one module for the ONNX file, and images on which the file is compared with it.

The images are chosen to be difficult for an exported graph. Shapes: N images, C channels, H rows, W columns, K outputs.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from wardround.phantoms.crops import CROP_PX, generate_crops
from wardround.sources.images.study import image_data
from wardround.study.load import Study
from wardround.tasks.classification.familiarity import familiarity_of

SEED = 20261
KINDS = 5
MOST_DRAWS = 1000  # of levels for a tie; some 30 suffice


class Released(nn.Module):
    """The network and its familiarity score as one module with two outputs."""

    def __init__(self, network: nn.Module, familiarity: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.familiarity = familiarity

    def forward(self, images_NCHW: Tensor) -> tuple[Tensor, Tensor]:
        """images_NCHW, uint8 -> logits (N, K) and distance (N,), float32."""
        return self.network(images_NCHW), self.familiarity(images_NCHW)


def exported(network: nn.Module, study: Study) -> tuple[Released, float]:
    """Return the module with the outputs of `release.onnx_form`, and the largest distance of a familiar image."""
    familiarity, threshold = familiarity_of(study)
    return Released(network, familiarity), threshold


def fixed_rows(study: Study, count: int) -> np.ndarray:
    """Return `count` images of the study's shape, uint8 (N, C, H, W), always the same ones.

    A fifth each: nodules as CT shows them, uniform noise, flat images and images of a few grey levels, smooth waves,
    and images in which two thresholds separate dark from bright equally well (ties of Otsu's method).
    """
    channels, side = image_data(study).channel_count, image_data(study).image_size
    each = -(-count // KINDS)
    generator = np.random.default_rng(SEED)
    kinds = (
        _slices(each * channels, side),
        generator.integers(0, 256, (each * channels, side, side), dtype=np.uint8),
        np.stack([_few_levels(generator, side, number) for number in range(each * channels)]),
        np.stack([_waves(generator, side) for _ in range(each * channels)]),
        np.stack([_tie(generator, side) for _ in range(each * channels)]),
    )
    return np.concatenate([kind.reshape(each, channels, side, side) for kind in kinds])[:count]


def _slices(count: int, side: int) -> np.ndarray:
    crops_NHW = generate_crops(count, SEED).images_NHW
    if crops_NHW.shape[1] != side:
        resized = functional.interpolate(crops_NHW[:, None].float(), (side, side), mode="bilinear", antialias=True)
        crops_NHW = resized[:, 0].round().clamp(0, 255).to(torch.uint8)
    return crops_NHW.numpy()


def _few_levels(generator: np.random.Generator, side: int, number: int) -> np.ndarray:
    """One to five grey levels, among them 0 and 255; the first images are flat."""
    levels = [(0,), (255,), (3,), (2, 3)][number] if number < 4 else generator.integers(0, 256, 1 + number % 5)
    return generator.choice(np.asarray(levels, np.uint8), (side, side))


def _waves(generator: np.random.Generator, side: int) -> np.ndarray:
    rows, columns = np.mgrid[:side, :side] / side
    angle, periods, phase = generator.uniform(0, np.pi), generator.uniform(0.5, 8), generator.uniform(0, 2 * np.pi)
    wave = np.sin(2 * np.pi * periods * (rows * np.cos(angle) + columns * np.sin(angle)) + phase)
    return np.round(127.5 + generator.uniform(2, 127) * wave).astype(np.uint8)


def _tie(generator: np.random.Generator, side: int) -> np.ndarray:
    """Three grey levels at equal distances with equally many pixels each, on padding: both thresholds are as good.

    The levels are drawn until sums in float32 decide for another threshold than sums in float64, because only such an
    image shows whether both sides add alike. The pixels are in the middle, which a network's crop keeps.
    """
    inner = min(side, CROP_PX)
    for _ in range(MOST_DRAWS):
        each = int(generator.integers(inner * inner // 12, inner * inner // 3))
        middle, apart = int(generator.integers(60, 190)), int(generator.integers(1, 55))
        levels = (middle - apart, middle, middle + apart)
        if _threshold(levels, np.float32) != _threshold(levels, np.float64):
            break
    pixels = np.zeros(inner * inner, np.uint8)
    for number, level in enumerate(levels):
        pixels[number * each : (number + 1) * each] = level
    image = np.zeros((side, side), np.uint8)
    begin = (side - inner) // 2
    image[begin : begin + inner, begin : begin + inner] = generator.permutation(pixels).reshape(inner, inner)
    return image


def _threshold(levels: tuple[int, ...], precision: type[np.floating]) -> int:
    """Return Otsu's threshold of an image with equally many pixels of each level, with sums of this precision."""
    share_L = np.zeros(256, np.float32)
    share_L[list(levels)] = np.float32(1) / np.float32(len(levels))
    below_L = share_L.cumsum(dtype=precision).astype(np.float32)
    moment_L = (share_L * np.arange(256, dtype=np.float32)).cumsum(dtype=precision).astype(np.float32)
    between_L = (moment_L[-1] * below_L - moment_L) ** 2 / np.maximum(below_L * (1 - below_L), np.float32(1e-4))
    return int(np.where(below_L <= 0.995, between_L, 0).argmax())
