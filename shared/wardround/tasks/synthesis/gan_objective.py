"""The objective of the GAN: patients train the discriminator, and the discriminator trains the generator.

In a discriminator's step the drawn patients' hinge gradients are clipped, summed, noised and divided by the public
number of expected patients. Then the mean gradient of a public number of generated images is added, each clipped to the
same C, so that neither side outweighs the other. After the round's noisy steps the generator takes its own steps,
against the resulting discriminator.

Guarantee: the term added after the noise, and the whole of a generator's step, are functions of weights, public numbers
and draws that no patient moves. Both are therefore post-processing.

Shapes: N images, Z latent numbers, K labels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from wardround.errors import required
from wardround.networks.weights import trained_parameters
from wardround.sources.images.study import image_data
from wardround.study.load import Study
from wardround.tasks.objective import Draws, Objective, StepTools
from wardround.tasks.synthesis.dcgan import Generator, hinge_of_fake, hinge_of_real, of_label
from wardround.tasks.synthesis.gan import SharedGAN
from wardround.tasks.synthesis.image_views import DRAWS, seen
from wardround.tasks.synthesis.study import section_of

GENERATOR_BETAS = (0.0, 0.99)
DISCRIMINATOR, GENERATOR = "discriminator.", "generator."

Views = Callable[[Tensor], Tensor]  # images_NCHW in [-1, 1] -> a view of each


def objective_of(network: SharedGAN, study: Study, tools: StepTools) -> Objective:
    """Return the objective of the discriminator's hinge loss over patients.

    The fakes' gradients are added after the noise, and the generator trains after the round.
    """
    parameters = trained_parameters(network, study)
    local, part = part_of(parameters, DISCRIMINATOR), network.discriminator
    of_real, of_fakes = (views_of(study, tools.draws, real=real) for real in (True, False))

    def add_fakes() -> None:
        fakes = section_of(study).fakes_per_step
        latents_NZ, labels_N = draw_latents(network.generator, fakes, tools.draws, tools.device)
        with torch.no_grad():
            fakes_NCHW = network.generator(latents_NZ, labels_N)
        gradients = tools.clipped_mean(part, local, of_fakes(fakes_NCHW), labels_N, hinge_of_fake)
        for name, gradient in gradients.items():
            required(local[name].grad, "gradient").add_(gradient)

    def sample() -> Tensor:
        generator = torch.Generator().manual_seed(0)  # synthetic input, neither patient data nor secret
        size = (7, *image_data(study).shape_CHW)
        return (2 * torch.rand(size, generator=generator) - 1).to(tools.device)

    return Objective(
        part=part,
        parameters=local,
        loss_per_row=hinge_of_real,
        augment=lambda images_NCHW: of_real(network.prepare(images_NCHW)),
        sample=sample,
        outputs=len(study.data.labels),
        pulled_to_start=False,  # not by FedProx, which would pull the two networks by different steps
        after_noise=add_fakes,
        after_round=lambda: train_generator(study, network, part_of(parameters, GENERATOR), tools),
    )


def train_generator(study: Study, network: SharedGAN, parameters: dict[str, nn.Parameter], tools: StepTools) -> None:
    """Take the generator's steps of a round, in place. No argument contains patient data."""
    section = section_of(study)
    optimizer = torch.optim.Adam(list(parameters.values()), section.generator_learning_rate, GENERATOR_BETAS)
    views = views_of(study, tools.draws, real=False)
    for _ in range(section.generator_steps):
        latents_NZ, labels_N = draw_latents(network.generator, section.fakes_per_step, tools.draws, tools.device)
        with torch.enable_grad():
            fakes_NCHW = network.generator(latents_NZ, labels_N)
            loss = -of_label(network.discriminator(views(fakes_NCHW)), labels_N).mean()
            gradients = torch.autograd.grad(loss, list(parameters.values()))
        for parameter, gradient in zip(parameters.values(), gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def draw_latents(generator: Generator, count: int, draws: Draws, device: torch.device) -> tuple[Tensor, Tensor]:
    """Draw latents (N, Z) and labels (N,).

    All labels are equally frequent, because the number of patients with each is secret.
    """
    latents_NZ = draws.normal(count * generator.latent).view(count, generator.latent)
    return latents_NZ.to(device, torch.float32), (torch.arange(count) % generator.labels).to(device)


def views_of(study: Study, draws: Draws, *, real: bool) -> Views:
    """Return the function that makes views of real or of generated images by the study's augmentation."""
    kind = study.training.augmentation
    if kind == "none":
        return lambda images_NCHW: images_NCHW

    def views(images_NCHW: Tensor) -> Tensor:
        draws_N8 = torch.from_numpy(draws.uniform(DRAWS * len(images_NCHW)).reshape(-1, DRAWS))
        return seen(images_NCHW, draws_N8.to(images_NCHW.device), kind, real=real)

    return views


def part_of(parameters: dict[str, nn.Parameter], prefix: str) -> dict[str, nn.Parameter]:
    """Return the parameters of one of the two networks, by their names in that network."""
    return {name.removeprefix(prefix): p for name, p in parameters.items() if name.startswith(prefix)}
