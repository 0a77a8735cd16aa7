"""The learning rate and the optimizer of a round's local steps, from public numbers only."""

from __future__ import annotations

import math

import torch
from torch import nn

from wardround.study import Study
from wardround.study_sections import TrainingSection
from wardround_client.privacy.plan import PrivacyPlan


def learning_rate(study: Study, plan: PrivacyPlan, parameters: int, round_: int) -> float:
    """The learning rate of a round (1-based), from public numbers only.

    `"rule"`: min(32, 3 N / (C s sqrt(d T K))) with N the federation's nominal patients, C the clipping norm, s the
    noise multiplier, d the parameters that move, T the steps of the study, K the nominal sites: the noise of all
    steps together then moves the weights by a bounded length. `cosine` scales by a linear warm-up and half a cosine
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
    """The study's optimizer, new in every round: no state outlives one."""
    if training.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=rate, momentum=training.momentum, weight_decay=training.weight_decay)
    kind = torch.optim.AdamW if training.optimizer == "adamw" else torch.optim.Adam
    return kind(parameters, lr=rate, weight_decay=training.weight_decay)
