"""Train the shipped familiarity network: crops of nodules against other generated pictures.

The same seed gives the same tensors on one machine. No real image is used.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from wardround.phantoms.crops import GENERATOR_VERSION, generate_crops
from wardround.phantoms.outliers import OUTLIERS_VERSION, generate_outliers
from wardround.tasks.classification.familiarity import THRESHOLD, Familiarity, NoduleDetector
from wardround_simulation.phantoms.pretrain_encoder import augment
from wardround_simulation.phantoms.shipping import repeatable, write_pretrained

# Those of the shipped file, which was trained with one thread.
DEFAULT_SEED, DEFAULT_CROPS, DEFAULT_EPOCHS = 31, 40_000, 4
OUTLIERS_A_CROP = 1.4
BATCH = 128
PEAK_LEARNING_RATE, WEIGHT_DECAY = 3e-3, 0.05
LABEL_SMOOTHING = 0.01
AVERAGE_RATE, AVERAGE_FROM_STEP = 0.005, 300
REFERENCE_CROPS, THRESHOLD_CROPS = 5_000, 5_000
REFUSED_SHARE = 0.015  # of fresh phantoms: those of a hospital's scanner are farther away than phantoms

Progress = Callable[[str, int, int], None]


def pretrain_familiarity(
    out_file: Path,
    seed: int = DEFAULT_SEED,
    crops: int = DEFAULT_CROPS,
    epochs: int = DEFAULT_EPOCHS,
    threads: int = 1,
    progress: Progress | None = None,
) -> dict[str, str]:
    """Train on `crops` phantoms and 1.4 times as many other pictures, write `out_file` and return its metadata."""
    report = progress or (lambda stage, done, total: None)
    with repeatable(threads):
        painted = crops + REFERENCE_CROPS + THRESHOLD_CROPS
        phantoms_NHW = generate_crops(painted, seed, lambda done, total: report("phantoms", done, total)).images_NHW
        others = round(crops * OUTLIERS_A_CROP)
        others_NHW = generate_outliers(others, seed, lambda done, total: report("other pictures", done, total))
        torch.manual_seed(seed * 1_000)
        detector = _train(phantoms_NHW[:crops], others_NHW, epochs, lambda done, n: report("training", done, n))
        network = Familiarity(detector).eval()
        with torch.no_grad():
            reference, fresh = phantoms_NHW[crops:].split([REFERENCE_CROPS, THRESHOLD_CROPS])
            network.fit(torch.cat([network.features(chunk[:, None]) for chunk in reference.split(250)]))
            distances_N = torch.cat([network(chunk[:, None]) for chunk in fresh.split(250)])
    tensors = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    facts = {
        "format": "wardround familiarity 1",
        "command": f"wardround-sim pretrain --network familiarity --seed {seed} --crops {crops} --epochs {epochs}",
        "seed": str(seed),
        "crops": str(crops),
        "epochs": str(epochs),
        "generator_version": f"{GENERATOR_VERSION}, outliers {OUTLIERS_VERSION}",
        THRESHOLD: f"{float(torch.quantile(distances_N, 1 - REFUSED_SHARE)):.4f}",
    }
    return write_pretrained(out_file, tensors, facts)


def _train(nodules_NHW: Tensor, others_NHW: Tensor, epochs: int, report: Callable[[int, int], None]) -> NoduleDetector:
    """Train with AdamW under a one-cycle schedule; return the running average of the weights."""
    detector, average = NoduleDetector(), NoduleDetector()
    average.load_state_dict(detector.state_dict())
    images_NHW = torch.cat([nodules_NHW, others_NHW])
    labels_N = torch.cat([torch.ones(len(nodules_NHW)), torch.zeros(len(others_NHW))])
    targets_N = labels_N * (1 - 2 * LABEL_SMOOTHING) + LABEL_SMOOTHING
    inputs_N1HW = torch.cat([detector.prepare(chunk[:, None]) for chunk in images_NHW.split(1000)])
    detector.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack this form
    optimizer = torch.optim.AdamW(detector.parameters(), PEAK_LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    batches = len(images_NHW) // BATCH
    steps = epochs * batches
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LEARNING_RATE, total_steps=steps)
    for step in range(steps):
        if step % batches == 0:
            order = torch.randperm(len(images_NHW))
        rows = order[step % batches * BATCH :][:BATCH]
        logits_N = detector.head(detector.features(augment(inputs_N1HW[rows])))[:, 0]
        loss = F.binary_cross_entropy_with_logits(logits_N, targets_N[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        rate = AVERAGE_RATE if step >= AVERAGE_FROM_STEP else 1.0
        with torch.no_grad():
            for kept, current in zip(average.parameters(), detector.parameters(), strict=True):
                kept.lerp_(current, rate)
        report(step + 1, steps)
    return average
