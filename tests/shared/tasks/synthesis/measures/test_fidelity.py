"""Measures of synthetic images, each on data whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from wardround.tasks.synthesis.measures.fidelity import copies, frechet, frechet_interval, told_apart


def normal(seed: int, rows: int, shift: float = 0.0, scale: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(shift, scale, (rows, 6))


def test_frechet_distance_is_that_of_normal_distributions() -> None:
    """Equal covariances: the squared distance of means; equal means: sum of (s - t)^2 over independent coordinates."""
    assert frechet(normal(0, 20_000), normal(1, 20_000, shift=2.0)) == pytest.approx(6 * 4, rel=0.03)
    assert frechet(normal(0, 20_000), normal(1, 20_000, scale=3.0)) == pytest.approx(6 * 4, rel=0.03)
    assert frechet(normal(0, 20_000), normal(1, 20_000)) < 0.01
    found = frechet_interval(normal(0, 500), normal(1, 400, shift=1.0), np.repeat(np.arange(100), 4))
    assert found.low < found.value < found.high and found.low > 2


def test_told_apart_is_a_half_for_equal_sources_and_one_for_distant_ones() -> None:
    patients = np.repeat(np.arange(100), 4)
    assert told_apart(normal(0, 400), normal(1, 400), patients).value == pytest.approx(0.5, abs=0.06)
    assert told_apart(normal(0, 400, shift=3.0), normal(1, 400), patients).value > 0.99


def test_copies_are_found_and_none_where_there_are_none() -> None:
    patients = np.repeat(np.arange(120), 3)
    trained = patients % 3 > 0
    real = normal(0, 360)
    near = real[trained][:150] + np.random.default_rng(2).normal(0, 0.1, (150, 6))
    copied = copies(near, real, patients, trained)
    assert not copied.passed and copied.share > 0.95 and copied.by_chance == pytest.approx(2 / 3, abs=0.01)
    p_values = [copies(normal(seed, 150), real, patients, trained).p_value for seed in range(10, 30)]
    assert sum(p < 0.05 for p in p_values) <= 4 and np.mean(p_values) > 0.2
