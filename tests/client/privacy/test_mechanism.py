"""Sampler, clipping and noise as theorems: how much one patient can change, and how much noise hides it."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import scipy.stats
import torch
from builders.randomness import KnownRandom
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from wardround.errors import WardroundError
from wardround.networks.build import initial_network
from wardround.networks.weights import trained_parameters
from wardround.study.load import parse_study
from wardround.tasks.labelled.objective import loss_per_row
from wardround_client.clipping.engines import (
    ClippedSum,
    PatientBatch,
    check_engine,
    clip_by_loop,
    clip_linear_head,
    sum_unclipped,
)
from wardround_client.clipping.select import engine_for
from wardround_client.privacy.noise import PatientOptimizer
from wardround_client.privacy.plan import PrivacyPlan, plan_from_study
from wardround_client.privacy.sampling import draw_patients, index_patients
from wardround_client.privacy.secure_random import SecretRandom

NETWORKS = ["phantom-encoder", "seed-cnn", "resnet-small", "resnet-large", "densenet121"]


def plan(**changes) -> PrivacyPlan:
    base = PrivacyPlan(
        epsilon_asked=8.0,
        delta=1e-4,
        sampling_rate=1.0,
        images_per_patient=None,
        max_grad_norm=0.5,
        noise_multiplier=2.0,
        nominal_patients=10,
        rounds=3,
        spare_rounds=0,
        local_steps=1,
    )
    return dataclasses.replace(base, **changes)


def network_of(name: str, size: int = 32):
    content = {
        "study": {"name": "t", "rounds": 1},
        "data": {"labels": ["a", "b"], "image_size": size},
        "model": {"name": name, "init": "random", "trainable": "all"},
        "training": {"learning_rate": 0.1},
        "privacy": {"epsilon": 8, "delta": 1e-4, "max_grad_norm": 0.5, "nominal_patients": 10},
        "aggregation": {"nominal_sites": 1},
    }
    study = parse_study(content)
    network = initial_network(study)
    with torch.no_grad():  # a zero head sends no gradient into the layers below it, and would test nothing there
        generator = torch.Generator().manual_seed(1)
        network.head.weight.copy_(torch.randn(network.head.weight.shape, generator=generator) * 0.1)
    return network, trained_parameters(network, study)


def batch_of(units: list[int], seed: int, size: int = 32) -> PatientBatch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (sum(units), 1, size, size), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, 2, (sum(units),), generator=generator)
    return PatientBatch(inputs_N=images, labels_N=labels, start_U1=torch.tensor([0, *np.cumsum(units)]))


def without(batch: PatientBatch, unit: int) -> PatientBatch:
    starts = batch.start_U1.tolist()
    keep = [row for row in range(starts[-1]) if not starts[unit] <= row < starts[unit + 1]]
    sizes = [b - a for a, b in zip(starts[:-1], starts[1:], strict=True)]
    del sizes[unit]
    starts = torch.tensor([0, *np.cumsum(sizes)], dtype=torch.int64)
    return PatientBatch(inputs_N=batch.inputs_N[keep], labels_N=batch.labels_N[keep], start_U1=starts)


def distance(one: dict, two: dict) -> float:
    return math.sqrt(sum(float((one[name] - two[name]).double().square().sum()) for name in one))


# Clipping


@pytest.mark.parametrize("name", NETWORKS)
def test_one_patient_moves_the_clipped_sum_by_at_most_c(name: str) -> None:
    network, parameters = network_of(name)
    batch = batch_of([2, 1, 2], seed=5)
    max_grad_norm = 0.01  # small enough that every patient is clipped: the bound is reached, so the test has power
    whole = clip_by_loop(network, parameters, batch, loss_per_row, max_grad_norm)
    assert whole.sensitivity == max_grad_norm
    for unit in range(3):
        part = clip_by_loop(network, parameters, without(batch, unit), loss_per_row, max_grad_norm)
        moved = distance(whole.gradients, part.gradients)
        assert 0.99 * max_grad_norm < moved <= max_grad_norm * (1 + 1e-4)


@settings(max_examples=60, deadline=None)
@given(units=st.lists(st.integers(1, 6), min_size=1, max_size=8), seed=st.integers(0, 2**31), clip=st.floats(1e-3, 30))
def test_the_closed_form_of_a_linear_head_is_the_loop_and_bounded(units: list[int], seed: int, clip: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    head = nn.Linear(5, 1 + seed % 3)
    parameters = dict(head.named_parameters())
    batch = PatientBatch(
        inputs_N=torch.randn(sum(units), 5, generator=generator) * 10 ** (seed % 4 - 2),
        labels_N=torch.randint(0, max(2, head.out_features), (sum(units),), generator=generator),
        start_U1=torch.tensor([0, *np.cumsum(units)]),
    )
    fast = clip_linear_head(head, parameters, batch, loss_per_row, clip)
    slow = clip_by_loop(head, parameters, batch, loss_per_row, clip)
    assert distance(fast.gradients, slow.gradients) <= 1e-5 * max(clip, 1e-6) * len(units)
    neighbour = clip_linear_head(head, parameters, without(batch, seed % len(units)), loss_per_row, clip)
    assert distance(fast.gradients, neighbour.gradients) <= clip * (1 + 1e-4)


def test_a_patient_with_nan_counts_as_zero_and_changes_nobody_else() -> None:
    head = nn.Linear(4, 1)
    parameters = dict(head.named_parameters())
    inputs = torch.randn(6, 4)
    labels = torch.tensor([0, 1, 0, 1, 1, 0])
    healthy = PatientBatch(inputs_N=inputs, labels_N=labels, start_U1=torch.tensor([0, 2, 4, 6]))
    for poison in (math.nan, math.inf):
        sick = inputs.clone()
        sick[2, 1] = poison
        batch = PatientBatch(inputs_N=sick, labels_N=labels, start_U1=healthy.start_U1)
        expected = clip_by_loop(head, parameters, without(healthy, 1), loss_per_row, 0.5)
        for engine in (clip_by_loop, clip_linear_head):
            assert distance(engine(head, parameters, batch, loss_per_row, 0.5).gradients, expected.gradients) < 1e-6


def test_without_a_bound_it_is_plain_training() -> None:
    """sigma = 0 and C = inf: the step is that of torch on the mean over patients of the mean over their images."""
    network, parameters = network_of("seed-cnn")
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    batch = batch_of([2, 1, 3], seed=3)
    free = plan(max_grad_norm=math.inf, noise_multiplier=0.0, epsilon_asked=math.inf, nominal_patients=3)
    optimizer = PatientOptimizer(torch.optim.SGD(parameters.values(), lr=0.1), free, parameters, SecretRandom())
    optimizer.accumulate_sum(sum_unclipped(network, parameters, batch, loss_per_row, math.inf))
    optimizer.noisy_step()
    stepped = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(before[name])
    losses = loss_per_row(network(batch.inputs_N), batch.labels_N)
    mean = sum(losses[a:b].mean() for a, b in zip([0, 2, 3], [2, 3, 6], strict=True)) / 3
    gradients = torch.autograd.grad(mean, list(parameters.values()))
    plain = {name: before[name] - 0.1 * g for (name, _), g in zip(parameters.items(), gradients, strict=True)}
    assert distance(stepped, plain) < 1e-6


def test_the_check_at_the_start_catches_an_engine_that_clips_per_image() -> None:
    def per_image(network, parameters, batch, loss, clip):
        each = torch.arange(len(batch.inputs_N) + 1)
        single = PatientBatch(inputs_N=batch.inputs_N, labels_N=batch.labels_N, start_U1=each)
        return clip_linear_head(network, parameters, single, loss, clip)

    head = nn.Linear(6, 1)
    parameters = dict(head.named_parameters())
    inputs = torch.randn(7, 6)
    check_engine(engine_for(head, 0.3), head, parameters, loss_per_row, inputs, 1, 0.3)
    with pytest.raises(WardroundError, match="differs from the one-patient loop"):
        check_engine(per_image, head, parameters, loss_per_row, inputs, 1, 0.3)


# Sampling


def test_everyone_is_drawn_with_the_same_probability_and_independently() -> None:
    index = index_patients(np.repeat(np.arange(50), 2))
    draws = np.zeros((4000, 50))
    randomness = SecretRandom()
    for row in draws:
        rows = draw_patients(plan(sampling_rate=0.3), index, randomness).rows_N
        row[np.unique(rows // 2)] = 1
    assert abs(draws.mean() - 0.3) < 5 * math.sqrt(0.21 / draws.size)
    # Poisson, not a fixed batch: the number drawn varies as a binomial's does (a shuffle-and-slice sampler gives 0)
    assert draws.sum(1).var() == pytest.approx(50 * 0.21, rel=0.15)
    correlation = np.corrcoef(draws.T) - np.eye(50)
    assert np.abs(correlation).max() < 6 / math.sqrt(4000)


def test_a_patient_brings_k_images_whatever_it_has() -> None:
    index = index_patients(np.array([0, 0, 0, 0, 0, 1, 2, 2]))
    draw = draw_patients(plan(images_per_patient=3), index, SecretRandom())
    units = np.split(draw.rows_N, draw.start_U1[1:-1])
    assert [len(unit) for unit in units] == [3, 3, 3]
    assert len(set(units[0])) == 3 and set(units[0]) <= {0, 1, 2, 3, 4}
    assert list(units[1]) == [5, 5, 5]
    assert set(units[2]) == {6, 7}
    whole = draw_patients(plan(), index, SecretRandom())
    assert whole.rows_N.tolist() == list(range(8)) and whole.start_U1.tolist() == [0, 5, 6, 8]


def test_whether_one_is_drawn_does_not_depend_on_the_others() -> None:
    """The same stream with one patient more at the end: the first fifty are drawn exactly as before."""
    few, more = index_patients(np.arange(50)), index_patients(np.arange(51))
    one = draw_patients(plan(sampling_rate=0.5), few, KnownRandom(b"k")).rows_N
    two = draw_patients(plan(sampling_rate=0.5), more, KnownRandom(b"k")).rows_N
    assert one.tolist() == [row for row in two.tolist() if row < 50]


# Noise


def noise_of_a_step(step_plan: PrivacyPlan, size: int = 20_000, engine_multiplier: float = 1.0) -> np.ndarray:
    """The noise that one step without patients puts into the weights, in units of C x sigma of `step_plan`."""
    used = dataclasses.replace(step_plan, noise_multiplier=step_plan.noise_multiplier * engine_multiplier)
    weight = nn.Parameter(torch.zeros(size))
    optimizer = PatientOptimizer(torch.optim.SGD([weight], lr=1.0), used, {"w": weight}, SecretRandom())
    optimizer.noisy_step()
    scale = step_plan.noise_multiplier * step_plan.max_grad_norm / step_plan.expected_patients
    return weight.detach().numpy() / scale


def is_standard_normal(values: np.ndarray) -> bool:
    """Mean and standard deviation within 4.5 standard errors; a normal sample fails once in 70,000 tests."""
    n = len(values)
    return abs(values.mean()) < 4.5 / math.sqrt(n) and abs(values.std() - 1) < 4.5 / math.sqrt(2 * n)


def test_an_empty_draw_steps_with_noise_of_the_promised_size() -> None:
    assert is_standard_normal(noise_of_a_step(plan(sampling_rate=0.5)))


@pytest.mark.parametrize("wrong", [2 / 3, 3 / 2, 0.95, 1.05])
def test_the_test_of_the_noise_rejects_another_size(wrong: float) -> None:
    assert not is_standard_normal(noise_of_a_step(plan(), engine_multiplier=wrong))


def test_the_noise_has_normal_tails_and_no_memory() -> None:
    values = SecretRandom().normal(400_001).double().numpy()
    for limit, share in [(1, 0.317311), (2, 0.0455), (3, 0.0027)]:
        assert abs((np.abs(values) > limit).mean() - share) < 5 * math.sqrt(share / len(values))
    half = 1 << 14  # the cosine and the sine of the same pairs stand this far apart
    for distance in (1, half):
        for power in (1, 2):
            one, two = values[:-distance] ** power, values[distance:] ** power
            assert abs(np.corrcoef(one, two)[0, 1]) < 5 / math.sqrt(len(one))
    assert scipy.stats.kstest(values, "norm").pvalue > 1e-6
    assert scipy.stats.kstest(values * 1.02, "norm").pvalue < 1e-6  # so the line above can fail


def test_a_normal_number_is_the_sum_of_four_draws_of_the_stream() -> None:
    stream, normal = KnownRandom(b"k").words(6), KnownRandom(b"k").normal(2)
    uniform_D = np.abs(stream[:4].view(np.int64).astype(np.float64)) * 2.0**-63
    angle_D = stream[4:].view(np.int32).astype(np.float64) * np.pi * 2.0**-31
    radius_D = np.sqrt(-2 * np.log(uniform_D))
    expected = [(radius_D * np.cos(angle_D)).sum() / 2, (radius_D * np.sin(angle_D)).sum() / 2]
    assert normal.numpy() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("standard_deviation", [1e-6, 0.873, 5.0, 1e4])
def test_the_last_bits_of_a_noised_sum_carry_nothing(standard_deviation: float) -> None:
    """Every released number lies on a public grid, fine against the noise and coarse against the rounding of a sum."""
    weight = nn.Parameter(torch.zeros(20_000))
    known = plan(noise_multiplier=2.0, max_grad_norm=standard_deviation / 2, nominal_patients=1)
    optimizer = PatientOptimizer(torch.optim.SGD([weight], lr=1.0), known, {"w": weight}, SecretRandom())
    sums = torch.linspace(-3, 3, 20_000) * standard_deviation
    optimizer.accumulate_sum(ClippedSum(gradients={"w": sums.clone()}, sensitivity=standard_deviation / 2))
    optimizer.noisy_step()
    released = -weight.detach().double().numpy()
    grid = 2.0 ** np.floor(np.log2(standard_deviation / 64))
    assert (released / grid == np.round(released / grid)).all()
    assert len(np.unique(released)) > 500
    assert is_standard_normal((released - sums.double().numpy()) / standard_deviation)


def test_noise_comes_once_for_all_physical_batches() -> None:
    weight = nn.Parameter(torch.zeros(30_000))
    known = plan(noise_multiplier=1.0, max_grad_norm=1.0, nominal_patients=1)
    optimizer = PatientOptimizer(torch.optim.SGD([weight], lr=1.0), known, {"w": weight}, SecretRandom())
    for _ in range(4):
        optimizer.accumulate_sum(ClippedSum(gradients={"w": torch.full((30_000,), -0.25)}, sensitivity=1.0))
    optimizer.noisy_step()
    assert is_standard_normal(weight.detach().numpy() - 1.0)
    assert optimizer.noisy_steps == 1


def test_a_sum_of_another_sensitivity_is_refused() -> None:
    weight = nn.Parameter(torch.zeros(3))
    optimizer = PatientOptimizer(torch.optim.SGD([weight], lr=1.0), plan(), {"w": weight}, SecretRandom())
    with pytest.raises(WardroundError, match="sensitivity"):
        optimizer.accumulate_sum(ClippedSum(gradients={"w": torch.zeros(3)}, sensitivity=1.0))


def test_two_steps_and_two_processes_never_share_a_draw() -> None:
    one, two = SecretRandom(), SecretRandom()
    assert len({one.normal(4).numpy().tobytes(), one.normal(4).numpy().tobytes(), two.normal(4).numpy().tobytes()}) == 3
    import copy
    import os

    with pytest.raises(WardroundError, match="cannot be sent to another process"):
        copy.deepcopy(one)
    if (child := os.fork()) == 0:
        try:
            one.words(1)
        except WardroundError:
            os._exit(17)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 17


# Plan


def test_the_plan_is_the_studys_and_never_the_datas() -> None:
    content = {
        "study": {"name": "t", "rounds": 20, "spare_rounds": 5},
        "data": {"labels": ["a", "b"]},
        "training": {"local_steps": 4},
        "privacy": {
            "epsilon": 3.0,
            "delta": 1e-5,
            "max_grad_norm": 0.7,
            "sampling_rate": 0.3,
            "images_per_patient": 2,
            "nominal_patients": 40,
        },
        "aggregation": {"nominal_sites": 3},
    }
    made = plan_from_study(parse_study(content))
    assert (made.sampling_rate, made.max_grad_norm, made.images_per_patient) == (0.3, 0.7, 2)
    assert made.expected_patients == pytest.approx(12.0)
    assert made.event(1).steps == 4 and made.event(made.attempts).steps == 100
    assert 2.9 < made.promised().value <= 3.0
