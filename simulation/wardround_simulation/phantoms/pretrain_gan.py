"""Train the shipped GAN from random weights.

The steps are: paint phantoms, train generator and discriminator on them, write one file. No real image is used. The
same seed gives the same weights on one machine.

Shapes: N images, C channels, H rows, W columns, Z latent numbers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from wardround.phantoms.crops import GENERATOR_VERSION, generate_crops
from wardround.tasks.synthesis.dcgan import hinge_of_fake, hinge_of_real, of_label
from wardround.tasks.synthesis.gan import LATENT, PHANTOM_LABELS, PHANTOM_PX, SharedGAN
from wardround.tasks.synthesis.image_views import DRAWS, seen
from wardround_simulation.phantoms.shipping import repeatable, write_pretrained

# Those of the shipped file, which was trained with one thread.
DEFAULT_SEED, DEFAULT_CROPS, DEFAULT_EPOCHS = 11, 12_000, 20
BATCH = 64
GENERATOR_RATE, DISCRIMINATOR_RATE = 4e-4, 8e-4  # two time scales (M. Heusel et al., arXiv:1706.08500)
BETAS = (0.0, 0.99)
AVERAGE_RATE = 0.002
DECAY_FROM = 0.7  # fraction of the steps after which both rates fall to a twentieth

Progress = Callable[[str, int, int], None]


def pretrain_gan(
    out_file: Path,
    seed: int = DEFAULT_SEED,
    crops: int = DEFAULT_CROPS,
    epochs: int = DEFAULT_EPOCHS,
    threads: int = 1,
    progress: Progress | None = None,
) -> dict[str, str]:
    """Train on `crops` phantoms for `epochs`, write `out_file` in float16 and return its metadata.

    The file contains the running average of the generator. `progress(stage, done, total)` is called often.
    """
    report = progress or (lambda stage, done, total: None)
    with repeatable(threads):
        phantoms = generate_crops(crops, seed, lambda done, total: report("phantoms", done, total))
        torch.manual_seed(seed * 1_000)  # differs from the seeds of the pictures
        network = _train(
            phantoms.images_NHW, phantoms.labels_N, epochs, lambda done, total: report("training", done, total)
        )
    tensors = {name: tensor.detach().half().contiguous() for name, tensor in network.state_dict().items()}
    facts = {
        "format": "wardround phantom gan 1",
        "command": f"wardround-sim pretrain --network gan --seed {seed} --crops {crops} --epochs {epochs}",
        "seed": str(seed),
        "generator_version": str(GENERATOR_VERSION),
    }
    return write_pretrained(out_file, tensors, facts)


def _train(images_NHW: Tensor, labels_N: Tensor, epochs: int, report: Callable[[int, int], None]) -> SharedGAN:
    """Train with the hinge loss, one discriminator and one generator step in turn, on views of real and fake images.

    Returns the pair of networks with the generator's running average.
    """
    network = SharedGAN(PHANTOM_PX, 1, PHANTOM_LABELS)
    real_N1HW = torch.cat([network.prepare(chunk[:, None]) for chunk in images_NHW.split(1000)])
    generator, discriminator = network.generator, network.discriminator
    average = copy.deepcopy(generator)
    of_generator = torch.optim.Adam(generator.parameters(), GENERATOR_RATE, BETAS)
    of_discriminator = torch.optim.Adam(discriminator.parameters(), DISCRIMINATOR_RATE, BETAS)
    steps = epochs * (len(real_N1HW) // BATCH)
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(one, lambda step: _rate(step / steps))
        for one in (of_generator, of_discriminator)
    ]
    for step in range(steps):
        if step % (len(real_N1HW) // BATCH) == 0:
            order = torch.randperm(len(real_N1HW))
        rows = order[(step * BATCH) % (len(order) // BATCH * BATCH) :][:BATCH]
        labels = labels_N[rows]
        with torch.no_grad():
            fakes = generator(torch.randn(BATCH, LATENT), labels)
        loss = hinge_of_real(discriminator(_seen(real_N1HW[rows], real=True)), labels).mean()
        loss = loss + hinge_of_fake(discriminator(_seen(fakes)), labels).mean()
        of_discriminator.zero_grad()
        loss.backward()
        of_discriminator.step()

        wanted = torch.randint(0, PHANTOM_LABELS, (BATCH,))
        loss = -of_label(discriminator(_seen(generator(torch.randn(BATCH, LATENT), wanted))), wanted).mean()
        of_generator.zero_grad()
        loss.backward()
        of_generator.step()
        for schedule in schedules:
            schedule.step()
        with torch.no_grad():
            rate = max(AVERAGE_RATE, 1 / (step + 1))
            for kept, current in zip(average.parameters(), generator.parameters(), strict=True):
                kept.lerp_(current, rate)
        report(step + 1, steps)
    generator.load_state_dict(average.state_dict())
    return network


def _seen(images_NCHW: Tensor, real: bool = False) -> Tensor:
    return seen(images_NCHW, torch.rand(len(images_NCHW), DRAWS), "light", real=real)


def _rate(done: float) -> float:
    return 1.0 if done < DECAY_FROM else max(0.05, 1 - 0.95 * (done - DECAY_FROM) / (1 - DECAY_FROM))
