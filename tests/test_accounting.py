"""Events in, epsilon out: the promise holds, the accountants agree, and nothing depends on how events are grouped."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wardround.accounting import GaussianEvent, calibrate_noise, spent, spent_exactly, spent_prv
from wardround.errors import WardroundError


@settings(deadline=None, max_examples=10)
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
