"""Train the shipped start of `gru` on simulated stays. No patient's data are used.

The same seed gives the same tensors on one machine.

Shapes: N stays, T hours, V variables.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from wardround.phantoms import stays as simulator
from wardround.sources.records.vocabulary import load_vocabulary
from wardround.tasks.early_warning.hourly_gru import HourlyGRU
from wardround.tasks.early_warning.objective import mean_over_hours
from wardround_simulation.phantoms.shipping import repeatable, write_pretrained

# Those of the shipped weights, which were trained with one thread.
DEFAULT_SEED, DEFAULT_STAYS, DEFAULT_EPOCHS = 1, 20_000, 4
BATCH = 128
PEAK_LEARNING_RATE = 1e-2
WEIGHT_DECAY = 0.05
LARGEST_GRADIENT = 1.0

Progress = Callable[[str, int, int], None]


def pretrain_gru(
    out_file: Path,
    seed: int = DEFAULT_SEED,
    stays: int = DEFAULT_STAYS,
    epochs: int = DEFAULT_EPOCHS,
    threads: int = 1,
    progress: Progress | None = None,
) -> dict[str, str]:
    """Train on `stays` simulated stays for `epochs`, write `out_file` and return its metadata.

    `progress(stage, done, total)` is called often.
    """
    report = progress or (lambda stage, done, total: None)
    report("stays", 0, 1)
    rows_NTV, died_N = simulator.stays(stays, seed)
    report("stays", 1, 1)
    with repeatable(threads):
        torch.manual_seed(seed)
        network = HourlyGRU(load_vocabulary("icu"))
        steps = lambda done, total: report("training", done, total)  # noqa: E731
        _train(network, torch.from_numpy(rows_NTV), torch.from_numpy(died_N), epochs, steps)
    facts = {
        "format": "wardround hourly gru 1",
        "command": f"wardround-sim pretrain --network gru --seed {seed} --stays {stays} --epochs {epochs}",
        "seed": str(seed),
        "stays": str(stays),
        "epochs": str(epochs),
        "generator_version": str(simulator.GENERATOR_VERSION),
    }
    tensors = {name: parameter.detach().contiguous() for name, parameter in network.named_parameters()}
    return write_pretrained(out_file, tensors, facts)


def _train(
    network: HourlyGRU, rows_NTV: Tensor, died_N: Tensor, epochs: int, report: Callable[[int, int], None]
) -> None:
    """Train with AdamW under a one-cycle schedule."""
    optimizer = torch.optim.AdamW(network.parameters(), PEAK_LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    batches = len(rows_NTV) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LEARNING_RATE, total_steps=epochs * batches)
    for epoch in range(epochs):
        order = torch.randperm(len(rows_NTV))
        for batch in range(batches):
            chosen = order[batch * BATCH : (batch + 1) * BATCH]
            loss = mean_over_hours(network(rows_NTV[chosen]), died_N[chosen]).mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), LARGEST_GRADIENT)
            optimizer.step()
            schedule.step()
            report(epoch * batches + batch + 1, epochs * batches)
