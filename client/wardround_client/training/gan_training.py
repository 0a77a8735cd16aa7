"""The GAN's local steps: the discriminator learns from patients under clip and noise, the generator from it alone.

A discriminator's step: the drawn patients' hinge gradients are clipped, summed and noised, divided by the public number
of expected patients; then the gradient for a public number of generated images is added, each clipped to the same C, so
that neither side outweighs the other. After the round's noisy steps the generator takes its own, against the
discriminator that they left. Shapes: N images, Z latent numbers, K labels.

Guarantee: one Gaussian event a discriminator's step, as in `noise.py`. What is added after the noise, and all of a
generator's step, is a function of weights, public numbers and draws that no patient moves: post-processing.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from wardround.study.load import Study
from wardround.tasks.synthesis.dcgan import Generator, hinge_of_fake, hinge_of_real, of_label
from wardround.tasks.synthesis.gan import SharedGAN
from wardround.tasks.synthesis.image_views import DRAWS, seen
from wardround_client.clipping.batch_size import images_at_once, images_per_batch
from wardround_client.clipping.bookkeeping import Precision, SpeedSettings
from wardround_client.clipping.engines import ClippingEngine, PatientBatch
from wardround_client.clipping.select import EngineMemory, Sample, checked_engine, engine_for, speed_of
from wardround_client.privacy.plan import PrivacyPlan
from wardround_client.privacy.secure_random import SecretRandom
from wardround_client.training.batches import Material, SpeedPlan
from wardround_client.training.steps import PatientsTerm, take_noisy_steps
from wardround_client.training.weights import load_weights, trained_parameters, weights_of

GENERATOR_BETAS = (0.0, 0.99)
DISCRIMINATOR, GENERATOR = "discriminator.", "generator."

Views = Callable[[Tensor], Tensor]  # images_NCHW in [-1, 1] -> a view of each


def train(
    study: Study,
    plan: PrivacyPlan,
    network: SharedGAN,
    weights: dict[str, np.ndarray],
    material: Material,
    round_: int,
    randomness: SecretRandom,
    device: torch.device,
    speed: SpeedPlan | None,
) -> dict[str, np.ndarray]:
    """One round of both networks; see `synthesis.train`."""
    network.train()
    parameters = trained_parameters(network, study)
    load_weights(parameters, weights)
    local = part_of(parameters, DISCRIMINATOR)
    part, synthesis = network.discriminator, study.synthesis
    speed = speed or SpeedPlan(engine=engine_for(part, plan.max_grad_norm))
    one_by_one = engine_for(part, plan.max_grad_norm, SpeedSettings(images_per_unit=1))
    of_real, of_fakes = (views_of(study, randomness, real=real) for real in (True, False))

    def add_fakes() -> None:
        latents_NZ, labels_N = draw_latents(network.generator, synthesis.fakes_per_step, randomness, device)
        with torch.no_grad():
            fakes_NCHW = network.generator(latents_NZ, labels_N)
        for name, gradient in fakes_gradient(
            part, local, of_fakes(fakes_NCHW), labels_N, one_by_one, plan.max_grad_norm
        ).items():
            local[name].grad.add_(gradient)

    term = PatientsTerm(
        part=part,
        parameters=local,
        loss_per_image=hinge_of_real,
        augment=lambda images_NCHW: of_real(network.prepare(images_NCHW)),
    )
    take_noisy_steps(study, plan, term, material, round_, randomness, device, speed, add_fakes)
    train_generator(study, network, part_of(parameters, GENERATOR), randomness, device)
    return weights_of(parameters)


def fakes_gradient(
    part: nn.Module,
    local: dict[str, nn.Parameter],
    fakes_NCHW: Tensor,
    labels_N: Tensor,
    engine: ClippingEngine,
    max_grad_norm: float,
) -> dict[str, Tensor]:
    """The fakes' side of a discriminator's step: the mean over them of each one's clipped hinge gradient, by name."""
    batch = PatientBatch(inputs_N=fakes_NCHW, labels_N=labels_N, start_U1=torch.arange(len(labels_N) + 1))
    total = engine(part, local, batch, hinge_of_fake, max_grad_norm).gradients
    return {name: gradient / len(labels_N) for name, gradient in total.items()}


def train_generator(
    study: Study,
    network: SharedGAN,
    parameters: dict[str, nn.Parameter],
    randomness: SecretRandom,
    device: torch.device,
) -> None:
    """The generator's steps of a round, in place. There is no patient among the arguments."""
    synthesis = study.synthesis
    optimizer = torch.optim.Adam(list(parameters.values()), synthesis.generator_learning_rate, GENERATOR_BETAS)
    views = views_of(study, randomness, real=False)
    for _ in range(synthesis.generator_steps):
        latents_NZ, labels_N = draw_latents(network.generator, synthesis.fakes_per_step, randomness, device)
        with torch.enable_grad():
            fakes_NCHW = network.generator(latents_NZ, labels_N)
            loss = -of_label(network.discriminator(views(fakes_NCHW)), labels_N).mean()
            gradients = torch.autograd.grad(loss, list(parameters.values()))
        for parameter, gradient in zip(parameters.values(), gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def draw_latents(
    generator: Generator, count: int, randomness: SecretRandom, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Latents (N, Z) and labels (N,), each label as often as every other: how many patients have it is secret."""
    latents_NZ = randomness.normal(count * generator.latent).view(count, generator.latent)
    return latents_NZ.to(device, torch.float32), (torch.arange(count) % generator.labels).to(device)


def views_of(study: Study, randomness: SecretRandom, *, real: bool) -> Views:
    """Views of one side by the study's augmentation, drawn from the site's randomness."""
    kind = study.training.augmentation
    if kind == "none":
        return lambda images_NCHW: images_NCHW

    def views(images_NCHW: Tensor) -> Tensor:
        draws_N8 = torch.from_numpy(randomness.uniform(DRAWS * len(images_NCHW)).reshape(-1, DRAWS))
        return seen(images_NCHW, draws_N8.to(images_NCHW.device), kind, real=real)

    return views


def plan_speed(
    network: SharedGAN,
    study: Study,
    plan: PrivacyPlan,
    device: torch.device,
    memory: EngineMemory | None,
    precision: Precision,
) -> SpeedPlan:
    """The discriminator's engine, held against the loop; see `synthesis.plan_speed`."""
    local = part_of(trained_parameters(network, study), DISCRIMINATOR)
    generator = torch.Generator().manual_seed(0)  # synthetic input: no patient, no secret
    size = (7, study.data.channel_count, study.data.image_size, study.data.image_size)
    images_NCHW = (2 * torch.rand(size, generator=generator) - 1).to(device)
    most = images_at_once(network.discriminator, local, images_NCHW)
    engine = checked_engine(
        network.discriminator,
        local,
        hinge_of_real,
        Sample(images_N=images_NCHW, outputs=len(study.data.labels), images_per_unit=plan.images_per_patient),
        plan.max_grad_norm,
        speed=speed_of(plan, precision, most),
        memory=memory,
    )
    return SpeedPlan(engine=engine, images_per_batch=images_per_batch(plan, most))


def part_of(parameters: dict[str, nn.Parameter], prefix: str) -> dict[str, nn.Parameter]:
    """The parameters of one of the two networks, by their names in it."""
    return {name.removeprefix(prefix): p for name, p in parameters.items() if name.startswith(prefix)}
