"""Measure the cost of a discriminator's private step, and the speed of generating images.

    ./run bench synthesis_step [--patients 16] [--images-per-patient 1,4] [--fakes 16] [--repeats 5] [--markdown]

The timed work is a whole step on one thread: gradients of real and generated images, noise if there is any, and the
optimizer. `plain` is the same step without privacy, with one backward pass over real and generated images. `ours` is a
site's step (`gan_objective`). `hooks` uses Opacus' per-sample gradients for the real images, averages those of a
patient before clipping, and adds torch's noise. The discriminator is the study's, all of it trained. The speed in
images per second is that of the generator, and of the sampler before any training, which keeps all phantoms that it
paints; a trained sampler keeps about a fifth.
"""

from __future__ import annotations

import copy
import time
from contextlib import nullcontext

import torch
from measure import Sheet, arguments_of, interleaved, machine, ratio, spread, tell
from opacus_modes import opacus_step
from torch import nn

from wardround.networks.build import initial_network
from wardround.study.load import parse_study
from wardround.tasks.synthesis.dcgan import hinge_of_fake, hinge_of_real
from wardround.tasks.synthesis.gan_objective import draw_latents
from wardround.tasks.synthesis.phantom_sampler import phantom_sampler
from wardround.tasks.synthesis.use import make_images
from wardround_client.clipping.engines import PatientBatch
from wardround_client.clipping.select import engine_for
from wardround_client.privacy.noise import PatientOptimizer
from wardround_client.privacy.plan import plan_from_study
from wardround_client.privacy.secure_random import SecretRandom
from wardround_client.training.train import clipped_mean_of

RATE = 1e-6  # so small that every repeat computes the same


def study_of(size: int, patients: int):
    return parse_study(
        {
            "study": {"name": "bench", "task": "synthesis", "rounds": 10},
            "data": {"labels": ["benign", "malignant"], "image_size": size},
            "model": {"name": "dcgan", "init": "random", "trainable": "all"},
            "training": {"learning_rate": RATE, "optimizer": "adam"},
            "privacy": {"epsilon": 8, "delta": 1e-4, "max_grad_norm": 0.1, "nominal_patients": patients},
            "aggregation": {"nominal_sites": 1},
        }
    )


def works_of(size: int, patients: int, k: int, fakes: int) -> dict:
    """Return the steps to time, each on a copy of the same networks."""
    study = study_of(size, patients)
    plan, network, randomness = plan_from_study(study), initial_network(study).train(), SecretRandom()
    images = torch.rand(patients * k, 1, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1
    batch = PatientBatch(
        inputs_N=images, labels_N=torch.arange(len(images)) % 2, start_U1=torch.arange(0, len(images) + 1, k)
    )
    device = torch.device("cpu")

    def fakes_of() -> tuple[torch.Tensor, torch.Tensor]:
        latents_NZ, labels_N = draw_latents(network.generator, fakes, randomness, device)
        with torch.no_grad():
            return network.generator(latents_NZ, labels_N), labels_N

    def plain_of(part: nn.Module):
        optimizer = torch.optim.Adam(part.parameters(), RATE)

        def step() -> None:
            made, labels_N = fakes_of()
            optimizer.zero_grad()
            loss = hinge_of_real(part(batch.inputs_N), batch.labels_N).mean()
            (loss + hinge_of_fake(part(made), labels_N).mean()).backward()
            optimizer.step()

        return step

    def ours_of(part: nn.Module):
        local, engine = dict(part.named_parameters()), engine_for(part, plan.max_grad_norm)
        clipped_mean = clipped_mean_of(plan)
        optimizer = PatientOptimizer(torch.optim.Adam(part.parameters(), RATE), plan, local, randomness)

        def add_fakes() -> None:
            for name, one in clipped_mean(part, local, *fakes_of(), hinge_of_fake).items():
                local[name].grad.add_(one)

        def step() -> None:
            optimizer.accumulate_sum(engine(part, local, batch, hinge_of_real, plan.max_grad_norm))
            optimizer.noisy_step(add_fakes)

        return step

    def hooks_of(part: nn.Module, plainly: nn.Module):
        clipped_sum = opacus_step("hooks", part, batch, k, plan.max_grad_norm, nullcontext)
        local = dict(plainly.named_parameters())
        optimizer = torch.optim.Adam(local.values(), RATE)
        deviation = plan.noise_multiplier * plan.max_grad_norm

        def step() -> None:
            sums = clipped_sum()
            made, labels_N = fakes_of()
            optimizer.zero_grad()
            hinge_of_fake(plainly(made), labels_N).mean().backward()
            for name, parameter in local.items():
                noised = sums[name] + torch.normal(0, deviation, parameter.shape)
                parameter.grad.add_(noised / plan.expected_patients)
            optimizer.step()

        return step

    part = network.discriminator
    return {
        "plain": plain_of(copy.deepcopy(part)),
        "ours": ours_of(copy.deepcopy(part)),
        "hooks": hooks_of(copy.deepcopy(part), copy.deepcopy(part)),
    }


def images_per_s(repeats: int, count: int) -> dict[str, list[float]]:
    """Return images per second of CPU time, for the generator at both sizes and for the sampler."""
    networks = {f"dcgan, {size} pixels": initial_network(study_of(size, 1)).eval() for size in (64, 128)}
    networks["phantom-sampler"] = phantom_sampler(("benign", "malignant")).eval()
    found: dict[str, list[float]] = {}
    for name, network in networks.items():
        for repeat in range(repeats + 1):
            began = time.process_time()
            make_images(network, count, seed=repeat)
            if repeat:  # the first one is a warm-up
                found.setdefault(name, []).append(count / (time.process_time() - began))
    return found


def main() -> None:
    parser = arguments_of(__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="64,128", help="pixels a side")
    parser.add_argument("--patients", type=int, default=16)
    parser.add_argument("--images-per-patient", default="1,4")
    parser.add_argument("--fakes", type=int, default=16)
    parser.add_argument("--count", type=int, default=100, help="images to make")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = machine()
    rows, steps = [], []
    for size in map(int, arguments.sizes.split(",")):
        for k in map(int, arguments.images_per_patient.split(",")):
            seconds = interleaved(works_of(size, arguments.patients, k, arguments.fakes), arguments.repeats)
            over = {name: ratio(seconds[name], seconds["plain"]) for name in ("ours", "hooks")}
            plain_ms = spread(seconds["plain"]).text(0, 1e3)
            rows.append([str(size), str(k), plain_ms, over["ours"].text(), over["hooks"].text()])
            steps.append(
                {
                    "size": size,
                    "images_per_patient": k,
                    "seconds": {name: spread(values).to_json() for name, values in seconds.items()},
                    "ratio": {name: one.to_json() for name, one in over.items()},
                }
            )
    made = images_per_s(arguments.repeats, arguments.count)
    title = f"A discriminator's step, {arguments.patients} patients, {arguments.fakes} fakes: CPU time over plain"
    sheets = [
        Sheet(title=title, columns=["pixels", "k", "plain, ms", "ours", "Opacus hooks"], rows=rows),
        Sheet(
            title="Images a second of CPU time, one thread",
            columns=["model", f"median (smallest–largest) of {arguments.repeats}"],
            rows=[[name, spread(values).text(0)] for name, values in made.items()],
        ),
    ]
    settings = {name: getattr(arguments, name) for name in ("patients", "fakes", "count", "repeats")}
    per_s = {name: spread(values).to_json() for name, values in made.items()}
    tell(arguments, found, {"settings": settings, "steps": steps, "images_per_s": per_s}, sheets)


if __name__ == "__main__":
    main()
