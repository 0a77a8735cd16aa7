"""The step without noise gives what the noisy one gives at noise 0, and takes no plan that has noise."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys

import pytest
import torch
from torch import nn

from wardround.errors import WardroundError
from wardround.study.load import Study, parse_study
from wardround_client.clipping.engines import ClippedSum
from wardround_client.privacy.noise import PatientOptimizer
from wardround_client.privacy.plan import plan_from_study
from wardround_client.privacy.secure_random import SecretRandom
from wardround_client.training.plain_steps import PlainOptimizer
from wardround_client.training.steps import step_optimizer


def study_of(epsilon: float, max_grad_norm: float) -> Study:
    return parse_study(
        {
            "study": {"name": "plain", "rounds": 2},
            "data": {"labels": ["a", "b"], "image_size": 64},
            "model": {"name": "seed-cnn", "init": "random", "trainable": "all"},
            "training": {"learning_rate": 0.1},
            "privacy": {
                "epsilon": epsilon,
                "delta": 1e-4,
                "max_grad_norm": max_grad_norm,
                "sampling_rate": 0.3,
                "nominal_patients": 23,
            },
            "aggregation": {"nominal_sites": 2},
        }
    )


@pytest.mark.parametrize("max_grad_norm", [float("inf"), 1.5])
def test_without_noise_both_optimizers_step_alike_bit_for_bit(max_grad_norm: float) -> None:
    plan = plan_from_study(study_of(float("inf"), max_grad_norm))
    found = []
    for private in (False, True):
        generator = torch.Generator().manual_seed(3)
        layer = nn.Linear(7, 3)
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
        parameters = dict(layer.named_parameters())
        inner = torch.optim.Adam(parameters.values(), lr=0.1)
        if private:
            optimizer = PatientOptimizer(inner, plan, parameters, SecretRandom())
        else:
            optimizer = step_optimizer(inner, plan, parameters, SecretRandom())
            assert type(optimizer) is PlainOptimizer
        for batches in (2, 0, 1):  # a step on nobody too
            for _ in range(batches):
                sums = {
                    name: torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                    for name, parameter in parameters.items()
                }
                optimizer.accumulate_sum(ClippedSum(gradients=sums, sensitivity=max_grad_norm))
            optimizer.noisy_step(lambda bias=layer.bias: bias.grad.add_(0.25))
        assert optimizer.noisy_steps == 3
        found.append([parameter.detach().numpy().tobytes() for parameter in parameters.values()])
    assert found[0] == found[1]


def test_a_plan_with_noise_gets_the_optimizer_that_adds_it() -> None:
    plan, layer = plan_from_study(study_of(8.0, 1.0)), nn.Linear(2, 1)
    parameters = dict(layer.named_parameters())
    inner = torch.optim.SGD(parameters.values(), lr=0.1)
    assert type(step_optimizer(inner, plan, parameters, SecretRandom())) is PatientOptimizer
    with pytest.raises(WardroundError, match="adds no noise"):
        PlainOptimizer(inner, plan, parameters)


@pytest.mark.parametrize("epsilon", [8.0, math.inf, math.nan, -math.inf])
@pytest.mark.parametrize("noise_multiplier", [0.0, -0.0, -1.0, 5e-324, math.nan, None])
def test_only_a_plan_without_privacy_steps_without_noise(epsilon: float, noise_multiplier: float | None) -> None:
    """Whatever a plan holds: no noise is added only where epsilon is infinite and the multiplier is exactly zero."""
    plan = plan_from_study(study_of(8.0, 1.0))
    noise_multiplier = plan.noise_multiplier if noise_multiplier is None else noise_multiplier
    plan = dataclasses.replace(plan, epsilon_asked=epsilon, noise_multiplier=noise_multiplier)
    layer = nn.Linear(2, 1)
    parameters = dict(layer.named_parameters())
    inner = torch.optim.SGD(parameters.values(), lr=0.1)
    if epsilon == math.inf and noise_multiplier == 0:
        assert type(step_optimizer(inner, plan, parameters, SecretRandom())) is PlainOptimizer
    elif noise_multiplier > 0:
        assert type(step_optimizer(inner, plan, parameters, SecretRandom())) is PatientOptimizer
    else:
        with pytest.raises(WardroundError, match="not positive"):
            step_optimizer(inner, plan, parameters, SecretRandom())


def test_a_sum_of_another_sensitivity_is_refused() -> None:
    plan, layer = plan_from_study(study_of(float("inf"), 1.5)), nn.Linear(2, 1)
    parameters = dict(layer.named_parameters())
    optimizer = PlainOptimizer(torch.optim.SGD(parameters.values(), lr=0.1), plan, parameters)
    with pytest.raises(WardroundError, match="sensitivity 2 differs from the plan's 1.5"):
        optimizer.accumulate_sum(ClippedSum(gradients={}, sensitivity=2.0))


def test_training_is_imported_without_opacus() -> None:
    code = "import sys, wardround_client.rounds.training; print('opacus' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "False"
