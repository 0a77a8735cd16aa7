"""Measure the cost of a restorer's private joint step, and the speed of restoration.

    ./run bench restoration_step [--patients 16] [--images-per-patient 1,4] [--trainable all,head] [--repeats 5]

A step is forward, loss and backward over generator and discriminator together, up to the gradient to which noise would
be added, on 64 x 64 crops that are already degraded. `plain` is the mean loss without clipping, `ours` the book-keeping
engine, and `loop` one patient at a time. `hooks` uses Opacus' per-sample gradients; those of the discriminator, which
evaluates each image twice, are added per image, and a patient's are averaged before clipping. The speed of restoration
is for images of 128 x 128 pixels, including their classical start, by degradation.
"""

from __future__ import annotations

import copy
import time
import warnings

import torch
from measure import Sheet, arguments_of, interleaved, machine, ratio, spread, tell
from opacus.grad_sample import GradSampleModule

from wardround.tasks.reconstruction.classical import classical_start
from wardround.tasks.reconstruction.degradations import KINDS, Degradation, SeededNumbers, degrade
from wardround.tasks.reconstruction.loss import JointLoss, LossWeights, loss_of_image
from wardround.tasks.reconstruction.restorer import INPUTS, Restorer, inputs_of_degraded
from wardround_client.clipping.bookkeeping import clip_by_bookkeeping
from wardround_client.clipping.engines import PatientBatch, clip_by_loop

CROP_PX, IMAGE_PX = 64, 128
MAX_GRAD_NORM = 0.1
WEIGHTS = LossWeights(adversarial=0.01, ssim=0.02)


def works_of(trainable: str, patients: int, k: int) -> dict:
    """Return the steps to time, each on a copy of the same network."""
    torch.manual_seed(0)
    network = Restorer().train()
    # With a head of zeros the other layers would have zero gradients.
    torch.nn.init.normal_(network.generator.head.weight, std=0.05)
    travelling = network.travelling(trainable)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name in travelling)
    images = torch.rand(patients * k, INPUTS + 1, CROP_PX, CROP_PX) * 255
    start_U1 = torch.arange(0, len(images) + 1, k)
    batch = PatientBatch(inputs_N=images, labels_N=torch.zeros(len(images), dtype=torch.int64), start_U1=start_U1)

    def parts() -> tuple[JointLoss, dict[str, torch.nn.Parameter]]:
        own = copy.deepcopy(network)
        return JointLoss(own, WEIGHTS), {n: p for n, p in own.named_parameters() if p.requires_grad}

    joint, parameters = parts()

    def plain() -> None:
        torch.autograd.grad(joint(images).mean(), list(parameters.values()))

    ours, loops = parts(), parts()
    hooked, sampled = parts()
    module = GradSampleModule(hooked, loss_reduction="sum")

    def hooks() -> None:
        module.zero_grad(set_to_none=True)
        module(images).sum().backward()
        by_patient = [
            parameter.grad_sample.unflatten(0, (patients, -1)).sum(1) / k for parameter in sampled.values()
        ]  # all rows of a patient, with one or two rows per image
        norm_U = torch.stack([g.flatten(1).square().sum(1) for g in by_patient]).sum(0).sqrt()
        factor_U = (MAX_GRAD_NORM / norm_U.clamp(min=1e-12)).clamp(max=1)
        for gradient in by_patient:
            torch.einsum("u...,u->...", gradient, factor_U)
        for parameter in sampled.values():
            parameter.grad_sample = None

    return {
        "plain": plain,
        "ours": lambda: clip_by_bookkeeping(*ours, batch, loss_of_image, MAX_GRAD_NORM),
        "loop": lambda: clip_by_loop(*loops, batch, loss_of_image, MAX_GRAD_NORM),
        "hooks": hooks,
    }


@torch.no_grad()
def images_per_s(repeats: int, count: int) -> dict[str, list[float]]:
    """Return images per second of CPU time, for the classical start alone and for the whole restoration."""
    network, found = Restorer().eval(), {}
    images = torch.rand(count, 1, IMAGE_PX, IMAGE_PX, generator=torch.Generator().manual_seed(1)) * 255
    for kind in KINDS:
        degradation = Degradation(kind=kind)
        degraded = degrade(images, degradation, SeededNumbers(1))
        works = {
            f"{kind}, classical start": lambda one=degraded, by=degradation: classical_start(one, by),
            f"{kind}, restored": lambda one=degraded, by=degradation: network(inputs_of_degraded(one, by)),
        }
        for name, work in works.items():
            for repeat in range(repeats + 1):
                began = time.process_time()
                work()
                if repeat:  # the first one is a warm-up
                    found.setdefault(name, []).append(count / (time.process_time() - began))
    return found


def main() -> None:
    parser = arguments_of(__doc__.splitlines()[0])
    parser.add_argument("--trainable", default="all,head")
    parser.add_argument("--patients", type=int, default=16)
    parser.add_argument("--images-per-patient", default="1,4")
    parser.add_argument("--count", type=int, default=16, help="images to restore at once")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="Full backward hook is firing")
    found, rows, steps = machine(), [], []
    for trainable in arguments.trainable.split(","):
        for k in map(int, arguments.images_per_patient.split(",")):
            seconds = interleaved(works_of(trainable, arguments.patients, k), arguments.repeats)
            over = {name: ratio(seconds[name], seconds["plain"]) for name in ("ours", "loop", "hooks")}
            rows.append(
                [trainable, str(k), spread(seconds["plain"]).text(0, 1e3), *(one.text() for one in over.values())]
            )
            timed = {name: spread(values).to_json() for name, values in seconds.items()}
            ratios = {name: one.to_json() for name, one in over.items()}
            steps.append({"trainable": trainable, "images_per_patient": k, "seconds": timed, "ratio": ratios})
    made = images_per_s(arguments.repeats, arguments.count)
    title = f"A restorer's joint step, {arguments.patients} patients, {CROP_PX} pixels: CPU time over plain"
    sheets = [
        Sheet(title=title, columns=["trainable", "k", "plain, ms", "ours", "loop", "Opacus hooks"], rows=rows),
        Sheet(
            title=f"Images of {IMAGE_PX} pixels a second of CPU time, one thread",
            columns=["what", f"median (smallest–largest) of {arguments.repeats}"],
            rows=[[name, spread(values).text(0)] for name, values in made.items()],
        ),
    ]
    settings = {name: getattr(arguments, name) for name in ("patients", "count", "repeats")}
    per_s = {name: spread(values).to_json() for name, values in made.items()}
    tell(arguments, found, {"settings": settings, "steps": steps, "images_per_s": per_s}, sheets)


if __name__ == "__main__":
    main()
