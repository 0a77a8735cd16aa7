"""From events to epsilon: the promise holds, the accountants agree, and the grouping of events has no effect."""

from __future__ import annotations

import decimal
import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from wardround.accounting import (
    RDP_ORDERS,
    GaussianEvent,
    PureEvent,
    calibrate_noise,
    spent,
    spent_exactly,
    spent_prv,
)
from wardround.errors import WardroundError


@settings(deadline=None, max_examples=6)
@given(
    epsilon=st.floats(0.2, 20),
    rate=st.sampled_from([0.01, 0.1, 0.5, 1.0]),
    steps=st.integers(1, 2000),
    delta=st.sampled_from([1e-6, 1e-4]),
)
def test_calibrated_noise_keeps_the_promise_and_wastes_at_most_half_a_percent(epsilon, rate, steps, delta) -> None:
    noise = calibrate_noise(epsilon=epsilon, delta=delta, sampling_rate=rate, steps=steps)
    cost = spent([GaussianEvent(noise_multiplier=noise, sampling_rate=rate, steps=steps)], delta).value
    less = spent([GaussianEvent(noise_multiplier=noise * 0.995, sampling_rate=rate, steps=steps)], delta).value
    assert cost <= epsilon
    assert less > epsilon or noise <= 0.0101  # the floor of the search


@pytest.mark.parametrize(("epsilon", "noise"), [(8, 2.91), (3, 6.65), (1, 17.58)])
def test_noise_of_the_measured_recipe(epsilon: float, noise: float) -> None:
    """25 steps with everyone, delta 1e-4: the figures that were measured independently."""
    assert calibrate_noise(epsilon=epsilon, delta=1e-4, sampling_rate=1.0, steps=25) == pytest.approx(noise, rel=2e-3)


def test_rdp_bounds_the_exact_value_from_above_and_not_by_much() -> None:
    for noise, steps in [(2.91, 25), (17.6, 25), (1.0, 1), (6.0, 300)]:
        event = GaussianEvent(noise_multiplier=noise, sampling_rate=1.0, steps=steps)
        bound, exact = spent([event], 1e-4).value, spent_exactly([event], 1e-4).value
        assert exact < bound < 1.2 * exact


def test_exact_epsilon_gives_its_delta_by_numerical_integration() -> None:
    """delta(epsilon) = E[(1 - exp(epsilon - L))+] for the privacy loss L ~ N(mu^2/2, mu^2), integrated on a grid."""
    event = GaussianEvent(noise_multiplier=2.0, sampling_rate=1.0, steps=9)
    epsilon, mu = spent_exactly([event], 1e-3).value, math.sqrt(9) / 2.0
    step, delta = 1e-4, 0.0
    for index in range(int(16 / step)):
        z = -8 + (index + 0.5) * step
        loss = mu * mu / 2 + mu * z
        delta += max(0.0, 1 - math.exp(epsilon - loss)) * math.exp(-z * z / 2) / math.sqrt(2 * math.pi) * step
    assert delta == pytest.approx(1e-3, rel=1e-3)


def test_one_study_of_two_halves_costs_what_the_whole_costs() -> None:
    whole = GaussianEvent(noise_multiplier=1.1, sampling_rate=0.1, steps=200)
    half = GaussianEvent(noise_multiplier=1.1, sampling_rate=0.1, steps=100)
    assert spent([half, half], 1e-5).value == pytest.approx(spent([whole], 1e-5).value, rel=1e-12)


def test_no_noise_is_no_privacy_and_says_so() -> None:
    nothing = GaussianEvent(noise_multiplier=0.0, sampling_rate=1.0, steps=1)
    private = GaussianEvent(noise_multiplier=5.0, sampling_rate=1.0, steps=1)
    assert spent([private, nothing], 1e-4).value == math.inf
    assert "no privacy" in str(spent([nothing], 1e-4))
    assert spent([nothing], 1e-4).to_json()["epsilon"] == "inf"
    assert spent_exactly([nothing], 1e-4).value == math.inf
    assert calibrate_noise(epsilon=math.inf, delta=1e-4, sampling_rate=0.5, steps=10) == 0.0
    assert spent([], 1e-4).value == 0.0


def test_an_epsilon_prints_all_that_gives_it_a_meaning() -> None:
    text = str(spent([GaussianEvent(noise_multiplier=2.91, sampling_rate=1.0, steps=25)], 1e-4))
    for part in ("epsilon = 8", "per patient", "add or remove one", "delta = 0.0001", "RDP, opacus"):
        assert part in text


@pytest.mark.parametrize(
    ("noise", "rate", "steps"), [(-1, 0.5, 1), (math.nan, 0.5, 1), (1, 0, 1), (1, 1.1, 1), (1, 0.5, -1)]
)
def test_impossible_events_are_refused(noise: float, rate: float, steps: int) -> None:
    with pytest.raises(WardroundError):
        GaussianEvent(noise_multiplier=noise, sampling_rate=rate, steps=steps)


def test_prv_lies_below_rdp_and_is_bounded_in_time() -> None:
    events = [GaussianEvent(noise_multiplier=1.0, sampling_rate=0.1, steps=100)]
    shown = spent_prv(events, 1e-5, timeout_s=60)
    assert shown is not None and 0.5 * spent(events, 1e-5).value < shown.value < spent(events, 1e-5).value
    assert spent_prv(events, 1e-5, timeout_s=0.05) is None


# Pure events, and both kinds together


@given(epsilon=st.floats(1e-3, 30), order=st.sampled_from([1.1, 2, 8, 64, 512]))
def test_a_pure_event_costs_in_rdp_what_randomised_response_costs_and_never_more_than_its_epsilon(epsilon, order):
    """The divergence of the two answers of randomised response, from its definition, in 200 digits of decimals."""
    with decimal.localcontext() as context:
        context.prec, context.Emin, context.Emax = 200, -(10**9), 10**9
        a, e = decimal.Decimal(order), decimal.Decimal(epsilon).exp()
        p, q = e / (1 + e), 1 / (1 + e)
        definition = float((p**a * q ** (1 - a) + q**a * p ** (1 - a)).ln() / (a - 1))
    got = PureEvent(epsilon=epsilon, count=3).rdp()[RDP_ORDERS.index(order)] / 3
    assert got == pytest.approx(definition, rel=1e-6, abs=1e-12)
    assert got <= epsilon * (1 + 1e-12) and got <= order * epsilon**2 / 2 * (1 + 1e-9)  # Bun, Steinke 2016: zCDP


@pytest.mark.parametrize("epsilon,count", [(1.0, 1), (0.1, 100), (3.0, 2), (0.01, 5000)])
def test_pure_events_cost_at_least_what_randomised_response_really_gives_away(epsilon: float, count: int) -> None:
    """The truth: the number of honest answers is binomial, so delta(epsilon) of the composition is a finite sum."""
    total = spent([PureEvent(epsilon=epsilon, count=count)], 1e-5)
    n = np.arange(count + 1)
    p = math.exp(epsilon) / (1 + math.exp(epsilon))
    loss = epsilon * (2 * n - count)
    weight = scipy.stats.binom.pmf(n, count, p)

    def delta_of(value: float) -> float:
        return float(np.sum(weight * np.maximum(0.0, -np.expm1(np.minimum(value - loss, 0.0)))))

    assert delta_of(total.value) <= total.delta * (1 + 1e-9)
    assert total.value <= epsilon * count * (1 + 1e-12)
    assert delta_of(0.5 * total.value) > total.delta  # not by a factor of two too careful


def test_few_pure_events_are_added_at_delta_zero_and_many_compose_in_rdp() -> None:
    one = spent([PureEvent(epsilon=0.5, count=2)], 1e-5)
    assert (one.value, one.delta, one.accountant) == (1.0, 0.0, "sum of pure epsilons")
    many = spent([PureEvent(epsilon=0.01, count=10_000)], 1e-5)
    assert many.value < 10 and many.delta == 1e-5 and "RDP" in many.accountant
    assert spent([PureEvent(epsilon=math.inf, count=1)], 1e-5).value == math.inf
    assert spent([PureEvent(epsilon=1.0, count=0)], 1e-5).value == 0


@pytest.mark.parametrize("mu,epsilon,count", [(0.5, 0.5, 2), (1.0, 0.1, 50), (0.2, 3.0, 1), (2.0, 0.05, 200)])
def test_both_kinds_together_cost_at_least_the_numerical_truth_and_not_much_more(mu, epsilon, count) -> None:
    """The loss of a Gaussian and of randomised response, convolved: a mixture of normals, one for each outcome."""
    gaussian = GaussianEvent(noise_multiplier=math.sqrt(10) / mu, sampling_rate=1.0, steps=10)
    pure = PureEvent(epsilon=epsilon, count=count)
    total = spent([gaussian, pure], 1e-5)
    n = np.arange(count + 1)
    weight = scipy.stats.binom.pmf(n, count, math.exp(epsilon) / (1 + math.exp(epsilon)))
    loss_of_pure = epsilon * (2 * n - count)

    def delta_of(value: float) -> float:
        left = value - loss_of_pure  # what the Gaussian's loss must be below; its own delta at that epsilon
        first = scipy.stats.norm.cdf(mu / 2 - left / mu)
        second = np.exp(left + scipy.stats.norm.logcdf(-mu / 2 - left / mu))
        return float(np.sum(weight * (first - second)))

    assert delta_of(total.value) <= 1e-5
    assert delta_of(0.7 * total.value) > 1e-5
    assert total.value >= max(spent([gaussian], 1e-5).value, 0.999 * spent_exactly([gaussian], 1e-5).value)
    assert total.value <= spent([gaussian], 1e-5).value + epsilon * count + 1e-12


def test_a_pure_event_is_not_for_the_gaussian_accountants() -> None:
    events = [GaussianEvent(noise_multiplier=2.0, sampling_rate=1.0, steps=1), PureEvent(epsilon=1.0, count=1)]
    assert spent_exactly(events, 1e-5) is None and spent_prv(events, 1e-5) is None


@pytest.mark.parametrize("epsilon,count", [(-1, 1), (math.nan, 1), (1, -1)])
def test_impossible_pure_events_are_refused(epsilon: float, count: int) -> None:
    with pytest.raises(WardroundError):
        PureEvent(epsilon=epsilon, count=count)
