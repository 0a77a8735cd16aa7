"""A round's local steps for every task: learning rate and optimizer from public numbers, and the noisy steps.

Guarantee: a step adds the drawn patients' clipped gradients, sensitivity C, and one noise of deviation sigma C: one
Gaussian event, as in `privacy/noise.py`. Exactly `plan.local_steps` of them are taken, whatever the data are.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from wardround.errors import WardroundError, required
from wardround.study.load import Study
from wardround.study.schema import TrainingSection
from wardround.tasks.objective import Objective
from wardround_client.clipping.engines import ClippedSum, PatientBatch
from wardround_client.clipping.select import engine_for
from wardround_client.privacy.plan import PrivacyPlan
from wardround_client.privacy.sampling import draw_patients
from wardround_client.privacy.secure_random import SecretRandom
from wardround_client.training.batches import Material, SpeedPlan, most_rows, or_one_by_one, physical_batches
from wardround_client.training.plain_steps import PlainOptimizer, without_privacy

if TYPE_CHECKING:
    from wardround_client.privacy.noise import PatientOptimizer

log = logging.getLogger(__name__)


def take_noisy_steps(
    study: Study,
    plan: PrivacyPlan,
    objective: Objective,
    material: Material,
    round_: int,
    randomness: SecretRandom,
    device: torch.device,
    speed: SpeedPlan | None,
    after_noise: Sequence[Callable[[], None]] = (),
) -> None:
    """Take the noisy steps of one round, in place.

    There are `plan.local_steps` steps; the step of an empty draw consists of noise alone.

    Args:
        after_noise: Each function may add terms that do not depend on any patient to the noised gradients.
        speed: How the steps are computed; if None, a rule chooses the engine.

    Raises:
        WardroundError: The number of steps taken is not the number that the ledger was charged for.
    """
    speed = speed or SpeedPlan(engine=engine_for(objective.part, plan.max_grad_norm))
    moving = list(objective.parameters.values())
    rate = learning_rate(study, plan, sum(parameter.numel() for parameter in moving), round_)
    optimizer = step_optimizer(optimizer_of(study.training, rate, moving), plan, objective.parameters, randomness)
    most = most_rows(material, speed.images_per_batch, objective.outputs)
    most_of_a_patient = most if math.isfinite(plan.max_grad_norm) else None

    def clipped(batch: PatientBatch) -> ClippedSum:
        return speed.engine(objective.part, objective.parameters, batch, objective.loss_per_row, plan.max_grad_norm)

    def add_public_terms() -> None:
        for add in after_noise:
            add()

    tried, counted = 0, 0
    for _ in range(plan.local_steps):
        draw = draw_patients(plan, material.index, randomness, most_of_a_patient)
        tried += draw.units
        for batch in physical_batches(material, draw, device, objective.augment, most):
            sums = or_one_by_one(partial(clipped, batch), [partial(clipped, unit) for unit in batch.each()])
            counted += len(sums)
            for one in sums:
                optimizer.accumulate_sum(one)
        optimizer.noisy_step(add_public_terms)
    if tried and not counted:
        # Raising here would discard the noise and draw it again, for a reason that depends on the patients.
        log.error("training failed for every patient, so this round is noise only; see the errors logged above")
    if optimizer.noisy_steps != plan.local_steps:
        raise WardroundError(
            f"{optimizer.noisy_steps} noisy steps ran, but the ledger was charged for {plan.local_steps}"
        )


def step_optimizer(
    optimizer: torch.optim.Optimizer,
    plan: PrivacyPlan,
    parameters: dict[str, nn.Parameter],
    randomness: SecretRandom,
) -> PatientOptimizer | PlainOptimizer:
    """Return the step that the plan asks for, around torch's optimizer.

    The choice depends only on the site's plan, and any plan but one without privacy gets the noisy step. Opacus, whose
    import takes longer than a small run, is loaded only for the noisy step.
    """
    if without_privacy(plan):
        return PlainOptimizer(optimizer, plan, parameters)
    from wardround_client.privacy.noise import PatientOptimizer

    return PatientOptimizer(optimizer, plan, parameters, randomness)


def pull_to_start(
    study: Study, parameters: dict[str, nn.Parameter], received: list[Tensor]
) -> Callable[[], None] | None:
    """Return FedProx's term mu (w - w_received) for `after_noise` (Li et al. 2020), which depends on no patient.

    Returns None if the study has another strategy.
    """
    if study.aggregation.strategy != "fedprox":
        return None

    def pull() -> None:
        for parameter, start in zip(parameters.values(), received, strict=True):
            required(parameter.grad, "gradient").add_(parameter.detach() - start, alpha=study.aggregation.proximal_mu)

    return pull


def learning_rate(study: Study, plan: PrivacyPlan, parameters: int, round_: int) -> float:
    """Return the learning rate of a round (1-based), from public numbers only.

    `"rule"`: min(32, 3 N / (C s sqrt(d T K))) with N the federation's nominal patients, C the clipping norm, s the
    noise multiplier, d the number of trained parameters, T the steps of the study, K the nominal sites. The noise of
    all steps together then moves the weights by a bounded length. `cosine` scales by a linear warm-up and half a cosine
    over the rounds.
    """
    training, rounds = study.training, study.study.rounds
    if training.learning_rate == "rule":
        sites = study.aggregation.nominal_sites
        spread = plan.max_grad_norm * plan.noise_multiplier * math.sqrt(parameters * rounds * plan.local_steps * sites)
        peak = 32.0 if spread == 0 else min(32.0, 3 * sites * plan.nominal_patients / spread)
    else:
        peak = float(training.learning_rate)
    if training.schedule == "constant":
        return peak
    if round_ <= training.warmup_rounds:
        return peak * round_ / (training.warmup_rounds + 1)
    done = (round_ - training.warmup_rounds) / max(1, rounds - training.warmup_rounds)
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, done) * 0.97))


def optimizer_of(training: TrainingSection, rate: float, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """Return the study's optimizer, new in every round, so that no state outlives a round."""
    if training.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=rate, momentum=training.momentum, weight_decay=training.weight_decay)
    kind = torch.optim.AdamW if training.optimizer == "adamw" else torch.optim.Adam
    return kind(parameters, lr=rate, weight_decay=training.weight_decay)
