"""The accept test: a trained restorer is released only if noised counts show that it is no worse than its start."""

from __future__ import annotations

import numpy as np
import pytest
from builders.randomness import KnownRandom

from wardround.metrics.noised_auc import ScoreHistogram, noise_variance
from wardround.metrics.score_bins import bins_of
from wardround.study.load import parse_study
from wardround.tasks.reconstruction.accept_test import MARGIN_DB, accept_test, released_model
from wardround.wire.evaluation import ScoreRelease, SiteRelease
from wardround.wire.packets import LedgerHead
from wardround_client.privacy.score_noise import noised, score_histogram
from wardround_server.rounds.evaluation import figures_of

BINS, SCALE = 16, 0.1
HEAD = LedgerHead(entries=1, sha256="d" * 64)


def histogram(gains: np.ndarray, epsilon: float = np.inf, key: bytes = b"k", sites: int = 1) -> ScoreHistogram:
    """What a server knows of these gains, divided over some sites."""
    randomness = KnownRandom(key)
    parts = np.array_split(gains, sites)
    counts = [score_histogram(part, np.zeros(len(part), bool), BINS, SCALE) for part in parts]
    total = np.sum([noised(one, epsilon, randomness) for one in counts], axis=0)
    variance = 0.0 if np.isinf(epsilon) else sites * noise_variance(epsilon)
    return ScoreHistogram(counts_2B=total, noise_variance=variance, logit_scale=SCALE)


def gains(mean: float, patients: int = 80, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, 0.1, patients)


def test_the_gain_is_read_from_exact_counts_up_to_the_bins() -> None:
    for mean in (-0.2, 0.0, 0.15):
        found = accept_test(histogram(gains(mean)))
        assert found.gain_db == pytest.approx(gains(mean).mean(), abs=0.01)
        assert found.low_db < found.gain_db


def test_a_better_model_is_accepted_and_a_worse_one_is_not_and_the_reason_says_so() -> None:
    better, worse = accept_test(histogram(gains(0.1))), accept_test(histogram(gains(-0.15)))
    assert better.accepted and "it is released" in better.reason
    assert not worse.accepted and "public start stays" in worse.reason


def test_through_the_noise_a_model_worse_by_the_margin_is_seldom_accepted() -> None:
    """At epsilon = 2, six sites and 80 patients: one in ten by the test's own level."""
    draws = 200
    wrong = sum(
        accept_test(histogram(gains(-MARGIN_DB, seed=n), 2.0, str(n).encode(), 6)).accepted for n in range(draws)
    )
    right = sum(accept_test(histogram(gains(0.15, seed=n), 2.0, str(n).encode(), 6)).accepted for n in range(draws))
    assert wrong / draws <= 0.16
    assert right / draws >= 0.9


def test_where_the_patients_drown_in_the_noise_the_start_stays() -> None:
    found = accept_test(histogram(gains(0.3, patients=2), 0.05, b"few"))
    drowned = ScoreHistogram(counts_2B=np.zeros((2, BINS), np.int64), noise_variance=50.0, logit_scale=SCALE)
    assert not accept_test(drowned).accepted and accept_test(drowned).gain_db is None
    assert found.gain_db is None or not found.accepted


def test_the_model_released_follows_the_test_and_without_one_it_is_the_trained_one() -> None:
    assert released_model(None, "new", "old") == ("new", "trained")
    assert released_model({"auc": 0.8}, "new", "old") == ("new", "trained")
    assert released_model({"accept_test": {"accepted": True}}, "new", "old") == ("new", "trained")
    assert released_model({"accept_test": {"accepted": False}}, "new", "old") == ("old", "start")


def test_the_server_decides_from_the_sites_noised_counts_alone() -> None:
    study = parse_study({
        "study": {"name": "restore", "task": "reconstruction", "rounds": 1},
        "data": {"labels": ["a", "b"], "image_size": 32},
        "model": {"name": "restorer", "init": "random"},
        "privacy": {"epsilon": 8, "delta": 1e-3, "max_grad_norm": 0.1, "nominal_patients": 60},
        "aggregation": {"nominal_sites": 2},
        "evaluation": {"epsilon": 4, "logit_scale": SCALE},
        "reconstruction": {"crop_px": 32},
    })  # fmt: skip
    counts = np.zeros((2, BINS), np.int64)
    counts[0, bins_of(np.array([0.12]), BINS, SCALE)[0]] = 40
    answers = [
        SiteRelease(site=name, release=ScoreRelease(counts_2B=counts, per_site=False, head=HEAD), code=None, bytes_up=0)
        for name in ("one", "two")
    ]
    test = figures_of(study, answers)["accept_test"]
    assert test["accepted"] and test["patients_noised"] == 80
    assert test == figures_of(study, answers[::-1])["accept_test"]
    exact = study.model_copy(update={"evaluation": study.evaluation.model_copy(update={"epsilon": np.inf})})
    without_noise = figures_of(exact, answers)["accept_test"]  # the same counts, did they carry no noise
    assert without_noise["gain_db"] == test["gain_db"] and without_noise["low_db"] > test["low_db"] + 0.005
    assert figures_of(study, [])["accept_test"]["accepted"] is False
