"""The mean of a round, the server's step and the released model, as theorems."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wardround.errors import RoundError, StudyError
from wardround.study.schema import AggregationSection
from wardround_server.rounds.aggregation import (
    ADAM_BETA1,
    ADAM_BETA2,
    ADAM_TAU,
    RunningMean,
    fold_release,
    released_weights,
    site_weight,
    start_release,
    start_server,
    step_server,
    tail_starts,
)


def some_weights(seed, scale=1.0):
    random = np.random.default_rng(seed)
    shapes = {"conv.weight": (4, 3, 2), "head.bias": (), "head.weight": (1, 5)}
    return {name: np.asarray(scale * random.normal(size=shape), np.float32) for name, shape in shapes.items()}


def mean_of(replies):
    """`replies`: {site: (weights, public weight)}, folded in the order of names as the exchange yields them."""
    mean = RunningMean(next(iter(replies.values()))[0])
    for site in sorted(replies):
        mean.fold(site, *replies[site])
    return mean.mean()


def same_bits(left, right):
    return left.keys() == right.keys() and all(left[name].tobytes() == right[name].tobytes() for name in left)


@given(st.integers(0, 10**6), st.sampled_from([1.0, 0.1, 3.7]), st.integers(1, 5))
def test_equal_hospitals_are_one_hospital(seed, weight, count):
    settings, weights = AggregationSection(nominal_sites=1), some_weights(seed)
    mean = mean_of({f"site-{i}": (weights, weight) for i in range(count)})
    after = step_server(settings, start_server(settings, some_weights(0)), mean)
    assert same_bits(after.weights, weights)


@given(st.permutations(range(6)))
def test_the_order_of_arrival_changes_no_bit(order):
    replies = {f"site-{i}": (some_weights(i, scale=10.0 ** (3 * i)), 1.0 + 0.1 * i) for i in order}
    in_order = {f"site-{i}": (some_weights(i, scale=10.0 ** (3 * i)), 1.0 + 0.1 * i) for i in range(6)}
    assert same_bits(mean_of(replies), mean_of(in_order))


def test_a_reply_out_of_order_or_a_second_one_of_a_site_is_refused():
    for first, second in (("b", "a"), ("a", "a")):
        mean = RunningMean(some_weights(0))
        mean.fold(first, some_weights(1), 1.0)
        with pytest.raises(RoundError):
            mean.fold(second, some_weights(2), 1.0)
    with pytest.raises(RoundError):
        RunningMean(some_weights(0)).mean()


def test_the_mean_is_the_weighted_mean():
    replies = {"a": (some_weights(1), 1.0), "b": (some_weights(2), 3.0)}
    mean = mean_of(replies)
    for name, array in mean.items():
        assert array.dtype == np.float64
        expected = (replies["a"][0][name].astype(np.float64) + 3 * replies["b"][0][name].astype(np.float64)) / 4
        np.testing.assert_allclose(array, expected, rtol=1e-15, atol=0)


def test_small_updates_survive_many_sites():
    """In float32 the thousandth site's 1e-8 would vanish beside the sum of the others; in float64 it does not."""
    base = {"w": np.ones(1, np.float32)}
    mean = RunningMean(base)
    for site in range(1000):
        mean.fold(f"{site:04d}", {"w": np.float32([1 + 2**-23])}, 1.0)
    assert mean.mean()["w"][0] == 1 + 2**-23


def test_memory_of_the_mean_does_not_grow_with_the_sites():
    size = 1 << 19

    def peak_bytes(count):
        tracemalloc.start()
        mean = RunningMean({"w": np.zeros(size, np.float32)})
        for site in range(count):
            mean.fold(f"{site:03d}", {"w": np.full(size, site, np.float32)}, 1.0)
        mean.mean()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    assert peak_bytes(32) < 1.05 * peak_bytes(2)


def test_site_weights_are_public_and_complete():
    assert site_weight(AggregationSection(nominal_sites=2), "anyone") == 1.0
    weighted = AggregationSection(nominal_sites=2, site_weights={"north": 2.0, "south": 1.0})
    assert site_weight(weighted, "north") == 2.0
    with pytest.raises(StudyError, match="nroth"):
        site_weight(weighted, "nroth")


def test_fedprox_on_the_server_is_fedavg():
    mean = mean_of({"a": (some_weights(1), 1.0), "b": (some_weights(2), 1.0)})
    plain = AggregationSection(nominal_sites=2)
    proximal = AggregationSection(nominal_sites=2, strategy="fedprox", proximal_mu=0.1)
    steps = [step_server(chosen, start_server(chosen, some_weights(0)), mean).weights for chosen in (plain, proximal)]
    assert same_bits(*steps)


def test_fedadam_is_algorithm_2_of_reddi_et_al():
    chosen = AggregationSection(nominal_sites=1, strategy="fedadam", server_learning_rate=0.3)
    state, x, m, v = start_server(chosen, {"w": np.float32([1.0])}), 1.0, 0.0, ADAM_TAU**2
    for target in (2.0, 1.5, -1.0, 0.25):
        state = step_server(chosen, state, {"w": np.array([target])})
        pull = target - x
        m = ADAM_BETA1 * m + (1 - ADAM_BETA1) * pull
        v = ADAM_BETA2 * v + (1 - ADAM_BETA2) * pull * pull
        x = float(np.float32(x + 0.3 * m / (v**0.5 + ADAM_TAU)))
        assert state.weights["w"].dtype == np.float32
        assert float(state.weights["w"][0]) == x


@given(st.integers(1, 200), st.floats(0.01, 1.0))
@settings(max_examples=200)
def test_the_tail_is_the_last_part_of_the_rounds_and_never_empty(rounds, fraction):
    first = tail_starts(AggregationSection(nominal_sites=1, tail_fraction=fraction), rounds)
    assert 1 <= first <= rounds
    assert rounds - first + 1 >= fraction * rounds - 1e-6
    assert rounds - first < fraction * rounds


@pytest.mark.parametrize(("release", "expected"), [("last", 10.0), ("tail_mean", 8.0), ("ema", None)])
def test_the_released_model_is_the_last_the_ema_or_the_mean_of_the_tail(release, expected):
    chosen = AggregationSection(nominal_sites=1, release=release, tail_fraction=0.5, ema_decay=0.8)
    rounds, models = 10, [{"w": np.full((2,), r, np.float32)} for r in range(1, 11)]
    state = start_release(chosen, models[0])
    for number, model in enumerate(models, start=1):
        state = fold_release(chosen, rounds, state, number, model)
    got = released_weights(chosen, state, models[-1])["w"]
    if expected is None:  # weights decay^(T-t), normalised
        powers = 0.8 ** np.arange(9, -1, -1)
        expected = float((powers * np.arange(1, 11)).sum() / powers.sum())
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, rtol=1e-6)


@pytest.mark.parametrize("release", ["last", "tail_mean", "ema"])
def test_averaging_equal_models_gives_that_model(release):
    chosen = AggregationSection(nominal_sites=1, release=release)
    model = some_weights(3)
    state = start_release(chosen, model)
    for number in range(1, 8):
        state = fold_release(chosen, 7, state, number, model)
    for name, array in released_weights(chosen, state, model).items():
        np.testing.assert_allclose(array, model[name], rtol=1e-6)


def test_a_run_that_stops_before_its_tail_releases_the_last_model():
    chosen = AggregationSection(nominal_sites=1, release="tail_mean", tail_fraction=0.1)
    model = some_weights(4)
    state = fold_release(chosen, 100, start_release(chosen, model), 1, model)
    assert same_bits(released_weights(chosen, state, model), model)
