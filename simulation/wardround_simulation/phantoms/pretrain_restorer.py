"""Train a shipped restorer from random weights, for one kind of degradation.

The steps are: paint phantoms, degrade them, train generator and discriminator, write one file. No real image is used.
The same seed gives the same tensors on one machine.

Shapes: N images, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from wardround.phantoms.scenes import SCENES_VERSION, generate_scenes
from wardround.tasks.reconstruction.degradations import KINDS, Degradation, Kind, SeededNumbers, degrade
from wardround.tasks.reconstruction.loss import JointLoss, LossWeights
from wardround.tasks.reconstruction.restorer import Restorer, inputs_of_degraded
from wardround_simulation.phantoms.shipping import repeatable, write_pretrained

DEFAULT_SEED = 1
DEFAULTS: dict[Kind, tuple[int, int]] = {  # phantoms and epochs of the shipped files, trained with one thread
    "super-resolution": (6_000, 3),
    "low-dose": (10_000, 8),
    "blur": (3_000, 2),
    "missing": (3_000, 2),
}
BATCH = 16
PEAK_LEARNING_RATE = 1.5e-3
WEIGHT_DECAY = 0.01
LARGEST_GRADIENT = 0.5
AVERAGE_RATE, AVERAGE_FROM_STEP = 0.01, 200
PUBLIC_WEIGHTS = LossWeights(adversarial=0.001, ssim=0.02)
# A restorer is trained on neighbouring strengths too. The first of each is a study's default.
STRENGTHS: dict[Kind, tuple[Degradation, ...]] = {
    "super-resolution": tuple(Degradation(kind="super-resolution", factor=f) for f in (4, 4, 2)),
    "low-dose": tuple(Degradation(kind="low-dose", dose=d) for d in (0.1, 0.1, 0.2)),
    "blur": tuple(Degradation(kind="blur", blur_px=b) for b in (1.5, 1.0, 2.0)),
    "missing": tuple(Degradation(kind="missing", missing=m) for m in (0.2, 0.1, 0.3)),
}

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """The generator's inputs and the true images, both uint8."""

    inputs_N3HW: Tensor
    true_N1HW: Tensor


def pretrain_restorer(
    out_file: Path,
    kind: Kind,
    seed: int = DEFAULT_SEED,
    crops: int | None = None,
    epochs: int | None = None,
    threads: int = 1,
    progress: Progress | None = None,
) -> dict[str, str]:
    """Train on `crops` phantoms for `epochs`, write `out_file` in float16 and return its metadata.

    The defaults of `crops` and `epochs` are those of the shipped file. `progress(stage, done, total)` is called often.
    """
    scenes, epochs = crops or DEFAULTS[kind][0], epochs or DEFAULTS[kind][1]
    report = progress or (lambda stage, done, total: None)
    with repeatable(threads):
        images_N1HW = generate_scenes(scenes, seed, lambda done, total: report("phantoms", done, total))[:, None]
        torch.manual_seed(seed * 1_000 + KINDS.index(kind))
        pairs = spoiled(images_N1HW, STRENGTHS[kind], seed, lambda done, total: report("spoiling", done, total))
        network = _train(pairs, epochs, lambda done, total: report("training", done, total))
    tensors = {name: tensor.half().contiguous() for name, tensor in network.state_dict().items()}
    facts = {
        "format": "wardround phantom restorer 1",
        "command": f"wardround-sim pretrain --network restorer --degradation {kind} --seed {seed} --crops {scenes} "
        f"--epochs {epochs} --threads {threads}",
        "degradation": kind,
        "seed": str(seed),
        "crops": str(scenes),
        "epochs": str(epochs),
        "generator_version": str(SCENES_VERSION),
    }
    return write_pretrained(out_file, tensors, facts)


@torch.no_grad()
def spoiled(
    images_N1HW: Tensor, strengths: tuple[Degradation, ...], seed: int, report: Callable[[int, int], None]
) -> Pairs:
    """Degrade each image once and return it with its classical restoration.

    The batches use the strengths in turn.
    """
    numbers, parts = SeededNumbers(seed), []
    count = len(images_N1HW)
    for first in range(0, count, BATCH):
        degradation = strengths[first // BATCH % len(strengths)]
        degraded = degrade(images_N1HW[first : first + BATCH], degradation, numbers)
        parts.append(inputs_of_degraded(degraded, degradation).round().clamp(0, 255).to(torch.uint8))
        report(min(first + BATCH, count), count)
    return Pairs(inputs_N3HW=torch.cat(parts), true_N1HW=images_N1HW)


def _train(pairs: Pairs, epochs: int, report: Callable[[int, int], None]) -> Restorer:
    """Train with AdamW under a one-cycle schedule in bfloat16; return the running average of the weights."""
    network = Restorer()
    joint = JointLoss(network, PUBLIC_WEIGHTS)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack this form
    average = Restorer()
    average.load_state_dict(network.state_dict())
    parameters = list(network.parameters())
    optimizer = torch.optim.AdamW(parameters, PEAK_LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    count = len(pairs.true_N1HW)
    steps = epochs * (count // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LEARNING_RATE, total_steps=steps, pct_start=0.15)
    step = 0
    for _ in range(epochs):
        order = torch.randperm(count)
        for batch in range(count // BATCH):
            rows = order[batch * BATCH : (batch + 1) * BATCH]
            both = torch.cat([pairs.inputs_N3HW[rows], pairs.true_N1HW[rows]], 1).float()
            both = _turned(both).contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16):
                losses_N1 = joint(both)
            optimizer.zero_grad()
            losses_N1.mean().backward()
            for network_part in (network.generator, network.discriminator):
                nn.utils.clip_grad_norm_(network_part.parameters(), LARGEST_GRADIENT)
            optimizer.step()
            schedule.step()
            rate = AVERAGE_RATE if step >= AVERAGE_FROM_STEP else 1.0
            with torch.no_grad():
                for kept, current in zip(average.parameters(), parameters, strict=True):
                    kept.lerp_(current, rate)
            step += 1
            report(step, steps)
    return average


def _turned(images_NCHW: Tensor) -> Tensor:
    """Apply one random flip and quarter turn to the whole batch."""
    images_NCHW = torch.rot90(images_NCHW, int(torch.randint(4, ())), (2, 3))
    return images_NCHW.flip(3) if torch.rand(()) < 0.5 else images_NCHW
