"""Train the shipped phantom encoder from random weights.

The steps are: paint phantoms, train trunk and head on them, fit the projection, write one file. No real image is used.
The same seed gives the same tensors on one machine.

Shapes: N images, H rows, W columns, K concepts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wardround.networks.phantom_encoder import POOLED, PhantomEncoder, PublicFeatures
from wardround.networks.preprocessing import DARKEST, LUNG_LEVEL
from wardround.phantoms.crops import CONCEPTS, GENERATOR_VERSION, PhantomCrops, generate_crops
from wardround_simulation.phantoms.shipping import repeatable, write_pretrained

# Those of the shipped encoder, which was trained with one thread.
DEFAULT_SEED, DEFAULT_CROPS, DEFAULT_EPOCHS = 1, 40_000, 3
BATCH = 128
PEAK_LEARNING_RATE = 4e-3
WEIGHT_DECAY = 0.05
CONCEPT_WEIGHT = 0.3
LABEL_SMOOTHING = 0.05
LARGEST_GRADIENT = 1.0
AVERAGE_RATE, AVERAGE_FROM_STEP = 0.005, 300
PROJECTION_CROPS = 3_000

Progress = Callable[[str, int, int], None]


def pretrain(
    out_file: Path,
    seed: int = DEFAULT_SEED,
    crops: int = DEFAULT_CROPS,
    epochs: int = DEFAULT_EPOCHS,
    threads: int = 1,
    progress: Progress | None = None,
) -> dict[str, str]:
    """Train on `crops` phantoms for `epochs`, write `out_file` and return its metadata.

    `progress(stage, done, total)` is called often.
    """
    report = progress or (lambda stage, done, total: None)
    with repeatable(threads):
        painted = crops + min(crops, PROJECTION_CROPS)
        phantoms = generate_crops(painted, seed, lambda done, total: report("phantoms", done, total))
        torch.manual_seed(seed * 1_000)  # differs from the seeds of the pictures
        encoder = _train(phantoms, crops, epochs, lambda done, total: report("training", done, total))
        features = PublicFeatures(encoder).eval()
        features.fit_projection(_pooled(features, phantoms.images_NHW[crops:]))
    tensors = {name: tensor.contiguous() for name, tensor in features.state_dict().items()}
    facts = {
        "format": "wardround phantom encoder 1",
        "command": f"wardround-sim pretrain --seed {seed} --crops {crops} --epochs {epochs}",
        "seed": str(seed),
        "crops": str(crops),
        "epochs": str(epochs),
        "threads": str(threads),
        "generator_version": str(GENERATOR_VERSION),
    }
    return write_pretrained(out_file, tensors, facts)


def _pooled(features: PublicFeatures, images_NHW: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([features.pooled(chunk[:, None]) for chunk in images_NHW.split(250)])


def _train(phantoms: PhantomCrops, crops: int, epochs: int, report: Callable[[int, int], None]) -> PhantomEncoder:
    """Train with AdamW under a one-cycle schedule.

    Returns the encoder with the running average of the weights, which generalises better than the last weights.
    """
    encoder = PhantomEncoder()
    concept_head = nn.Linear(POOLED, len(CONCEPTS))
    inputs_N1HW = torch.cat([encoder.prepare(chunk[:, None]) for chunk in phantoms.images_NHW[:crops].split(1000)])
    labels_N1 = phantoms.labels_N[:crops, None].float()
    concepts_NK = phantoms.concepts_NK[:crops]
    concepts_NK = (concepts_NK - concepts_NK.mean(0)) / concepts_NK.std(0)
    encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack this form
    average = PhantomEncoder()
    average.load_state_dict(encoder.state_dict())

    parameters = [*encoder.parameters(), *concept_head.parameters()]
    optimizer = torch.optim.AdamW(parameters, PEAK_LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    steps = epochs * (crops // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LEARNING_RATE, total_steps=steps)
    for step, rows in enumerate(_batches(crops, epochs)):
        pooled_ND = encoder.pool(augment(inputs_N1HW[rows]))
        targets_N1 = labels_N1[rows] * (1 - 2 * LABEL_SMOOTHING) + LABEL_SMOOTHING
        loss = F.binary_cross_entropy_with_logits(encoder.head(pooled_ND), targets_N1)
        loss = loss + CONCEPT_WEIGHT * F.smooth_l1_loss(concept_head(pooled_ND), concepts_NK[rows])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, LARGEST_GRADIENT)
        optimizer.step()
        schedule.step()
        rate = AVERAGE_RATE if step >= AVERAGE_FROM_STEP else 1.0
        with torch.no_grad():
            for kept, current in zip(average.parameters(), encoder.parameters(), strict=True):
                kept.lerp_(current, rate)
        report(step + 1, steps)
    return average


def _batches(crops: int, epochs: int) -> Iterator[Tensor]:
    for _ in range(epochs):
        order = torch.randperm(crops)
        for batch in range(crops // BATCH):
            yield order[batch * BATCH : (batch + 1) * BATCH]


def augment(images_N1HW: Tensor) -> Tensor:
    """Vary pose, sharpness, tone and noise of normalised images (N, 1, H, W) at random."""
    return _noise(_tone(_sharpness(_pose(images_N1HW))))


def _pose(images_N1HW: Tensor) -> Tensor:
    """Rotate seven images in ten, scale them by up to 16 % and shift them by up to 3 % of the width."""
    count = len(images_N1HW)
    scale, turn = torch.empty(count).uniform_(-0.15, 0.15).exp(), torch.empty(count).uniform_(-math.pi, math.pi)
    shift_N2 = torch.empty(count, 2).uniform_(-0.06, 0.06)
    moved = torch.rand(count) < 0.7
    scale, turn = torch.where(moved, scale, 1.0), torch.where(moved, turn, 0.0)
    cos, sin = scale * turn.cos(), scale * turn.sin()
    affine_N23 = torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1), shift_N2 * moved[:, None]], 2)
    grid = F.affine_grid(affine_N23, list(images_N1HW.shape), align_corners=False)
    return F.grid_sample(images_N1HW, grid, padding_mode="reflection", align_corners=False)


def _sharpness(images_N1HW: Tensor) -> Tensor:
    """Blur two batches in ten and sharpen two others."""
    if torch.rand(()) >= 0.4:
        return images_N1HW
    taps = torch.exp(-(torch.arange(-2, 3) ** 2) / 2 / torch.empty(()).uniform_(0.3, 1.0) ** 2)
    taps = taps / taps.sum()
    padded = F.pad(images_N1HW, (2, 2, 2, 2), mode="replicate")
    blurred = F.conv2d(padded, (taps[:, None] * taps[None])[None, None])
    return blurred if torch.rand(()) < 0.5 else 2 * images_N1HW - blurred


def _tone(images_N1HW: Tensor) -> Tensor:
    """Apply a random power, contrast and offset relative to the lung's level."""
    count = len(images_N1HW)
    power, contrast, offset = (torch.rand(count, 1, 1, 1) for _ in range(3))
    above_lung = images_N1HW - LUNG_LEVEL
    bent = above_lung.sign() * above_lung.abs().clamp(min=1e-4, max=4.0 - DARKEST) ** (0.7 + 0.6 * power)
    return bent * (0.7 + 0.6 * contrast) + LUNG_LEVEL + 0.2 * (offset - 0.5)


def _noise(images_N1HW: Tensor) -> Tensor:
    """Add white noise to all images and coarse noise (two pixels wide) to half of them, with random strengths."""
    count, _, rows, columns = images_N1HW.shape
    white, coarse = torch.rand(count, 1, 1, 1), torch.rand(count, 1, 1, 1) * (torch.rand(count, 1, 1, 1) < 0.5)
    grains = F.interpolate(torch.randn(count, 1, rows // 2, columns // 2), (rows, columns))
    return images_N1HW + 0.15 * (white * torch.randn_like(images_N1HW) + coarse * grains)
