"""How well images are restored, exactly, as only a simulation can know: PSNR and SSIM of every method on the same test
images, spoiled alike; classical methods are tuned on training patients, intervals know which images are one patient's.

Shapes: N images, one channel, H rows, W columns, P patients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from wardround.tasks.reconstruction.classical import (
    bicubic,
    classical_start,
    non_local_means,
    to_full_size,
    tv_restored,
)
from wardround.tasks.reconstruction.degradations import Degradation, Degraded, Kind, degrade, numbers_of
from wardround.tasks.reconstruction.image_quality import psnr_db, ssim, to_8_bit
from wardround.tasks.reconstruction.restorer import inputs_of_degraded

START = "public start"
Z_95 = 1.959964
TUNING_IMAGES = 24
_AT_ONCE = 16

Method = Callable[[Degraded, Degradation, float], Tensor]


@dataclass(frozen=True, kw_only=True)
class Classical:
    """A classical method: `restore(degraded, degradation, strength)` and the strengths that are tried in tuning."""

    name: str
    strengths: tuple[float, ...]
    restore: Method


def _bicubic(degraded: Degraded, degradation: Degradation, _: float) -> Tensor:
    return bicubic(degraded.observed_N1HW, degradation.factor)


def _as_observed(degraded: Degraded, _: Degradation, __: float) -> Tensor:
    return to_full_size(degraded)


def _start(degraded: Degraded, degradation: Degradation, _: float) -> Tensor:
    return classical_start(degraded, degradation)


def _nlm(degraded: Degraded, degradation: Degradation, bandwidth: float) -> Tensor:
    return non_local_means(degraded.observed_N1HW, degradation.noise_grey, bandwidth)


AS_OBSERVED = Classical(name="as observed", strengths=(0.0,), restore=_as_observed)
CLASSICAL: dict[Kind, tuple[Classical, ...]] = {
    "super-resolution": (
        Classical(name="bicubic", strengths=(0.0,), restore=_bicubic),
        Classical(name="total variation", strengths=(0.1, 0.2, 0.4, 0.8), restore=tv_restored),
    ),
    "low-dose": (
        AS_OBSERVED,
        Classical(name="total variation", strengths=(6.0, 9.0, 12.0, 16.0), restore=tv_restored),
        Classical(name="non-local means", strengths=(0.5, 0.65, 0.8, 1.0), restore=_nlm),
    ),
    "blur": (
        AS_OBSERVED,
        Classical(name="Wiener filter", strengths=(0.0,), restore=_start),
        Classical(name="total variation", strengths=(0.02, 0.05, 0.1, 0.2), restore=tv_restored),
    ),
    "missing": (
        AS_OBSERVED,
        Classical(name="diffusion", strengths=(0.0,), restore=_start),
        Classical(name="total variation", strengths=(0.5, 1.0, 2.0), restore=tv_restored),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Spoiled:
    """Test images and what is left of them, each spoiled by numbers of its own; uint8 `true_N1HW` and `inputs_N3HW`."""

    true_N1HW: Tensor
    degraded: Degraded
    inputs_N3HW: Tensor
    degradation: Degradation


@torch.no_grad()
def spoil(images_N1HW: np.ndarray, degradation: Degradation) -> Spoiled:
    """Spoil each image by itself, the same way whenever it is asked for, and make its classical start."""
    parts = []
    for image in images_N1HW:
        true = torch.from_numpy(np.array(image[None]))
        degraded = degrade(true, degradation, numbers_of(image))
        parts.append((degraded, inputs_of_degraded(degraded, degradation).round().clamp(0, 255).to(torch.uint8)))
    return Spoiled(
        true_N1HW=torch.from_numpy(np.array(images_N1HW)),
        degraded=Degraded(
            observed_N1HW=torch.cat([one.observed_N1HW for one, _ in parts]),
            known_N1HW=torch.cat([one.known_N1HW for one, _ in parts]),
        ),
        inputs_N3HW=torch.cat([inputs for _, inputs in parts]),
        degradation=degradation,
    )


@torch.no_grad()
def by_network(network: nn.Module, spoiled: Spoiled) -> Tensor:
    """What a restorer makes of the spoiled images: 8-bit grey values (N, 1, H, W)."""
    network = network.eval()
    return torch.cat([to_8_bit(network(part.float())) for part in spoiled.inputs_N3HW.split(_AT_ONCE)])


def by_classical(method: Classical, strength: float, spoiled: Spoiled) -> Tensor:
    """What a classical method makes of them: 8-bit grey values (N, 1, H, W)."""
    observed, known = spoiled.degraded.observed_N1HW, spoiled.degraded.known_N1HW
    parts = zip(observed.split(_AT_ONCE), known.split(_AT_ONCE), strict=True)
    pieces = [Degraded(observed_N1HW=one, known_N1HW=other) for one, other in parts]
    return torch.cat([to_8_bit(method.restore(piece, spoiled.degradation, strength)) for piece in pieces])


def tuned(method: Classical, training: Spoiled) -> float:
    """The strength with the best mean PSNR on training patients' images."""
    if len(method.strengths) == 1:
        return method.strengths[0]
    figures = [float(psnr_db(by_classical(method, s, training), training.true_N1HW).mean()) for s in method.strengths]
    return method.strengths[int(np.argmax(figures))]


@dataclass(frozen=True, kw_only=True, eq=False)
class Quality:
    """One method on the test images: `psnr_N` in dB and `ssim_N`, float64."""

    psnr_N: np.ndarray
    ssim_N: np.ndarray


@torch.no_grad()
def quality_of(restored_N1HW: Tensor, true_N1HW: Tensor) -> Quality:
    """PSNR and SSIM of each image."""
    true = true_N1HW.float()
    return Quality(
        psnr_N=psnr_db(restored_N1HW, true).double().numpy(), ssim_N=ssim(restored_N1HW, true).double().numpy()
    )


@dataclass(frozen=True, kw_only=True)
class Mean:
    """A mean over images and its 95 % interval over patients."""

    value: float
    low: float
    high: float

    def text(self, digits: int, sign: bool = False) -> str:
        """As a table shows it."""
        form = f"{{:{'+' if sign else ''}.{digits}f}}"
        return f"{form.format(self.value)} ({form.format(self.low)} to {form.format(self.high)})"


def mean_over(values_N: np.ndarray, patients_N: np.ndarray) -> Mean:
    """The mean with a normal interval whose variance adds up the deviations within each patient (the sandwich of a
    ratio)."""
    value = float(values_N.mean())
    _, patient_N = np.unique(patients_N, return_inverse=True)
    sums_P = np.bincount(patient_N, weights=values_N - value)
    patients = len(sums_P)
    scale = patients / max(1, patients - 1)
    half = Z_95 * float(np.sqrt(scale * (sums_P**2).sum())) / len(values_N)
    return Mean(value=value, low=value - half, high=value + half)


def compared(
    spoiled: Spoiled, training: Spoiled, networks: Mapping[str, nn.Module]
) -> tuple[dict[str, Quality], dict[str, Tensor], dict[str, float]]:
    """Every method on the same spoiled images: figures, restored images, and the strengths that tuning chose."""
    pictures: dict[str, Tensor] = {}
    strengths: dict[str, float] = {}
    for method in CLASSICAL[spoiled.degradation.kind]:
        strengths[method.name] = tuned(method, training)
        pictures[method.name] = by_classical(method, strengths[method.name], spoiled)
    pictures |= {name: by_network(network, spoiled) for name, network in networks.items()}
    figures = {name: quality_of(picture, spoiled.true_N1HW) for name, picture in pictures.items()}
    return figures, pictures, strengths


def spread_rows(rows: Sequence[int] | np.ndarray, most: int) -> np.ndarray:
    """At most `most` of the rows, spread evenly."""
    rows = np.asarray(rows)
    return rows if len(rows) <= most else rows[np.linspace(0, len(rows) - 1, most).astype(int)]
