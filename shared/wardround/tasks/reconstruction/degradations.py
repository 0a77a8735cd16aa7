"""Degradations of images, applied on the fly: low resolution, low dose, blur and missing data.

All functions take grey values 0..255 and return 8-bit grey values, as a file would store them. The strength of a
degradation is a public number of the study. Its random part is drawn anew for each image from the caller's source of
random numbers, which is a site's secret one, or a seeded one for phantoms and tests.

Shapes: N images, one channel, H rows, W columns.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from wardround.tasks.objective import Draws
from wardround.tasks.reconstruction.image_quality import to_8_bit
from wardround.tasks.reconstruction.study import ReconstructionSection

Kind = Literal["super-resolution", "low-dose", "blur", "missing"]
KINDS: tuple[Kind, ...] = ("super-resolution", "low-dose", "blur", "missing")
FULL_DOSE_NOISE = 4.5  # grey levels of noise assumed in an image at full dose
NOISE_PEAK = 0.2  # cycles per pixel at which the noise, which reconstruction from projections colours, is strongest
RECTANGLES, LINES = 3, 6
LARGEST_BLUR_REACH_PX = 12


class SeededNumbers:
    """Reproducible draws, for phantoms, for tests, and for the degradation of known test images."""

    def __init__(self, seed: int) -> None:
        self._generator = np.random.default_rng(seed)

    def normal(self, count: int) -> Tensor:
        """Draw `count` standard normal float32."""
        return torch.from_numpy(self._generator.standard_normal(count, dtype=np.float32))

    def uniform(self, count: int) -> np.ndarray:
        """Draw `count` uniform float64 in [0, 1)."""
        return self._generator.random(count)

    def words(self, count: int) -> np.ndarray:
        """Draw `count` uniform 64-bit words."""
        return self._generator.integers(0, 2**64, count, dtype=np.uint64)


@dataclass(frozen=True, kw_only=True)
class Degradation:
    """One kind of degradation and its strength; all values are public.

    `factor` is that of the lower resolution, `dose` the share of the full dose, `blur_px` the standard deviation of the
    blur in pixels, and `missing` the share of the area that is missing.
    """

    kind: Kind
    factor: int = 4
    dose: float = 0.1
    blur_px: float = 1.5
    missing: float = 0.2

    @property
    def strength(self) -> float:
        """The strength on a scale of 0..1, which is an input of the network."""
        return {
            "super-resolution": self.factor / 8,
            "low-dose": self.noise_grey / 64,
            "blur": self.blur_px / 4,
            "missing": self.missing,
        }[self.kind]

    @property
    def noise_grey(self) -> float:
        """Standard deviation, in grey levels, of the noise that this dose adds to that of a full-dose scan.

        The variance of quantum noise is inversely proportional to the dose.
        """
        return FULL_DOSE_NOISE * math.sqrt(1 / self.dose - 1)

    def words(self) -> str:
        """Return the degradation in words."""
        return {
            "super-resolution": f"{self.factor}x lower resolution",
            "low-dose": f"{self.dose:.0%} of the dose",
            "blur": f"blur of {self.blur_px:g} pixels",
            "missing": f"{self.missing:.0%} of the area missing",
        }[self.kind]


def degradation_of(section: ReconstructionSection) -> Degradation:
    """Return the degradation of a study."""
    return Degradation(
        kind=section.degradation,
        factor=section.factor,
        dose=section.dose,
        blur_px=section.blur_px,
        missing=section.missing,
    )


@dataclass(frozen=True, kw_only=True)
class Degraded:
    """Degraded images.

    `observed_N1HW` holds float32 8-bit grey values (H and W smaller by the factor for low resolution). `known_N1HW`, at
    full size, is 1 where the image was measured and 0 where it is missing.
    """

    observed_N1HW: Tensor
    known_N1HW: Tensor


def degrade(images_N1HW: Tensor, degradation: Degradation, numbers: Draws) -> Degraded:
    """Degrade each image by itself. Grey values 0..255, uint8 or float; H and W are multiples of the factor."""
    images = images_N1HW.float()
    known = torch.ones_like(images)
    if degradation.kind == "super-resolution":
        return Degraded(observed_N1HW=to_8_bit(F.avg_pool2d(images, degradation.factor)), known_N1HW=known)
    if degradation.kind == "low-dose":
        noise = correlated_noise(images.shape, numbers).to(images.device) * degradation.noise_grey
        return Degraded(observed_N1HW=to_8_bit(images + noise), known_N1HW=known)
    if degradation.kind == "blur":
        return Degraded(observed_N1HW=to_8_bit(gaussian_blur(images, degradation.blur_px)), known_N1HW=known)
    known = missing_parts(images.shape, degradation.missing, numbers).to(images.device)
    return Degraded(observed_N1HW=to_8_bit(images * known), known_N1HW=known)


def correlated_noise(shape: tuple[int, ...], numbers: Draws) -> Tensor:
    """Return noise (N, 1, H, W) of variance 1 in expectation, with the spectrum of filtered back-projection.

    Its power rises with the frequency (the ramp) and falls with the kernel's resolution: f exp(-f / peak).
    """
    count, _, rows, columns = shape
    white = numbers.normal(count * rows * columns).reshape(count, 1, rows, columns)
    down, right = torch.fft.fftfreq(rows)[:, None], torch.fft.rfftfreq(columns)[None]
    frequency = (down**2 + right**2).sqrt()
    power = frequency * torch.exp(-frequency / NOISE_PEAK)
    whole = (torch.fft.fftfreq(rows)[:, None] ** 2 + torch.fft.fftfreq(columns)[None] ** 2).sqrt()
    mean_power = (whole * torch.exp(-whole / NOISE_PEAK)).mean()
    return torch.fft.irfft2(torch.fft.rfft2(white) * (power / mean_power).sqrt(), s=(rows, columns))


def gaussian_blur(images_N1HW: Tensor, deviation_px: float) -> Tensor:
    """Blur images with a Gaussian kernel; the border is repeated."""
    reach = min(LARGEST_BLUR_REACH_PX, math.ceil(3 * deviation_px))
    taps = torch.exp(-(torch.arange(-reach, reach + 1, device=images_N1HW.device) ** 2) / (2 * deviation_px**2))
    taps = (taps / taps.sum()).to(images_N1HW.dtype)
    padded = F.pad(images_N1HW, (reach, reach, reach, reach), mode="replicate")
    return F.conv2d(F.conv2d(padded, taps.view(1, 1, 1, -1)), taps.view(1, 1, -1, 1))


def missing_parts(shape: tuple[int, ...], share: float, numbers: Draws) -> Tensor:
    """Return masks (N, 1, H, W) that are 0 where data are missing.

    Three rectangles and up to six lines are missing per image, about `share` of its area.
    """
    count, _, rows, columns = shape
    known = torch.ones(count, 1, rows, columns)
    for image in range(count):
        place_P4 = numbers.uniform(4 * (RECTANGLES + LINES)).reshape(-1, 4)
        for top, left, aspect, size in place_P4[:RECTANGLES]:
            area = share * rows * columns / (RECTANGLES + 1) * (0.5 + size)
            height = min(rows, max(2, round(math.sqrt(area * 2 ** (2 * aspect - 1)))))
            width = min(columns, max(2, round(area / height)))
            y, x = int(top * (rows - height + 1)), int(left * (columns - width + 1))
            known[image, 0, y : y + height, x : x + width] = 0
        lines = max(1, round(share / 4 * rows / 2))
        for top, _, way, _ in place_P4[RECTANGLES:][: min(LINES, lines)]:
            if way < 0.5:
                known[image, 0, int(top * (rows - 1)) : int(top * (rows - 1)) + 2] = 0
            else:
                known[image, 0, :, int(top * (columns - 1)) : int(top * (columns - 1)) + 2] = 0
    return known


def numbers_of(image_HW: np.ndarray) -> SeededNumbers:
    """Return draws that depend only on the image (its SHA-256).

    The degradation of a test image is therefore independent of other images, and the same each time.
    """
    digest = hashlib.sha256(np.ascontiguousarray(image_HW).tobytes()).digest()
    return SeededNumbers(int.from_bytes(digest[:8], "little"))
