"""The training loop of a site, the same for all tasks.

A round takes `plan.local_steps` noisy steps from the weights received. The task (`wardround.tasks.objective`) defines
the loss and the treatment of weights that do not depend on patients; this module and `steps.py` draw patients, clip,
add noise and step.

Shapes: N rows.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from wardround.networks.weights import load_weights, trained_parameters, weights_of
from wardround.study.load import Study
from wardround.tasks.objective import ClippedMean, LossPerRow, Objective, StepTools
from wardround.tasks.registry import objective_part
from wardround_client.clipping.batch_size import images_at_once, images_per_batch
from wardround_client.clipping.bookkeeping import Precision, SpeedSettings
from wardround_client.clipping.engines import PatientBatch
from wardround_client.clipping.select import EngineMemory, Sample, checked_engine, engine_for, speed_of
from wardround_client.privacy.plan import PrivacyPlan
from wardround_client.privacy.secure_random import SecretRandom
from wardround_client.training.batches import Material, SpeedPlan
from wardround_client.training.steps import pull_to_start, take_noisy_steps


def train(
    study: Study,
    plan: PrivacyPlan,
    network: nn.Module,
    weights: dict[str, np.ndarray],
    material: Material,
    round_: int,
    randomness: SecretRandom,
    device: torch.device,
    speed: SpeedPlan | None = None,
) -> dict[str, np.ndarray]:
    """Run the local steps of one round from `weights` and return the new weights to send.

    The result is float32, with the same names and shapes.

    Guarantee: each step adds the clipped gradients of the drawn patients, sensitivity C over all parameters that
    patients move together, and one noise of deviation sigma C: one Gaussian event. Exactly `plan.local_steps` of them
    are taken, whatever the data are; an empty draw steps on noise alone. Everything else is a function of their results
    and of public numbers. No optimizer state outlives the call.

    `speed` comes from `plan_speed`; without it a rule chooses the clipping engine.
    """
    network = network.to(device).train()
    parameters = trained_parameters(network, study)
    load_weights(parameters, weights)
    objective = objective_of(network, study, plan, randomness, device)
    received = [parameter.detach().clone() for parameter in objective.parameters.values()]
    pull = pull_to_start(study, objective.parameters, received) if objective.pulled_to_start else None
    after_noise = [step for step in (pull, objective.after_noise) if step is not None]
    take_noisy_steps(study, plan, objective, material, round_, randomness, device, speed, after_noise)
    if objective.after_round is not None:
        objective.after_round()
    return weights_of(parameters)


def objective_of(
    network: nn.Module, study: Study, plan: PrivacyPlan, randomness: SecretRandom, device: torch.device
) -> Objective:
    """Return the task's objective for a network on `device`, with the tools that the loop provides to the task."""
    tools = StepTools(draws=randomness, device=device, clipped_mean=clipped_mean_of(plan))
    return objective_part(study.study.task).objective_of(network, study, tools)


def clipped_mean_of(plan: PrivacyPlan) -> ClippedMean:
    """Return a function that computes the mean over rows of each row's gradient, clipped to the plan's norm.

    Each row is a unit of its own.
    """

    def clipped_mean(
        part: nn.Module,
        parameters: dict[str, nn.Parameter],
        inputs_N: Tensor,
        labels_N: Tensor,
        loss_per_row: LossPerRow,
    ) -> dict[str, Tensor]:
        engine = engine_for(part, plan.max_grad_norm, SpeedSettings(images_per_unit=1))
        batch = PatientBatch(inputs_N=inputs_N, labels_N=labels_N, start_U1=torch.arange(len(labels_N) + 1))
        total = engine(part, parameters, batch, loss_per_row, plan.max_grad_norm).gradients
        return {name: gradient / len(labels_N) for name, gradient in total.items()}

    return clipped_mean


def plan_speed(
    network: nn.Module,
    study: Study,
    plan: PrivacyPlan,
    device: torch.device,
    memory: EngineMemory | None = None,
    precision: Precision = "float32",
) -> SpeedPlan:
    """Choose the clipping engine, prove it against the one-patient loop on synthetic input, and plan the memory.

    `memory` holds the folders in which a site keeps results about engines (`clipping/select.py`).

    Raises:
        WardroundError: The proof fails. The site then does not train.
    """
    objective = objective_of(network.to(device), study, plan, SecretRandom(), device)
    part, parameters, sample_N = objective.part, objective.parameters, objective.sample()
    most = objective.rows_at_once or images_at_once(part, parameters, sample_N)
    engine = checked_engine(
        part,
        parameters,
        objective.loss_per_row,
        Sample(images_N=sample_N, outputs=objective.outputs, images_per_unit=plan.images_per_patient),
        plan.max_grad_norm,
        speed=speed_of(plan, precision, most, objective.rows_in_a_group),
        memory=memory,
    )
    return SpeedPlan(engine=engine, images_per_batch=images_per_batch(plan, most))
