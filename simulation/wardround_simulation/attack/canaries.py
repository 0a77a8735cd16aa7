"""The canary audit: measure how well the presence of planted patients can be inferred from what is released.

One run with m canaries gives a lower bound on epsilon (Steinke, Nasr, Jagielski 2023, "Privacy auditing with one (1)
training run", arXiv:2305.08846, theorem 5.2 and appendix D). A coin flip of the auditor decides for each canary whether
it takes part. The training is the product's: its sampler, clipping, noise and optimizer with the study's plan, over all
rounds. Each canary has a nonzero value in one feature only, a different one for each canary. A clipped canary therefore
moves one weight by C and nothing else, which is the most that a patient can do. The auditor, like the server, sees
every message.

The bound is sound but loose: with 500 canaries, a true epsilon of 8 gives a bound of little more than 1. A fault that
doubles epsilon stays far below the promise. So the same figures are also compared with the honest band, which is what
an audit would measure of a system that follows its plan exactly. Two figures are compared: the number of right guesses,
and the signal. The signal is the distance between the scores of the canaries that took part and the scores of the
others; it uses all canaries, and its distribution is known.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats
from torch import Tensor, nn

from wardround.study.load import Study, parse_study
from wardround.tasks.registry import linear_head
from wardround_client.privacy.plan import PrivacyPlan, plan_from_study
from wardround_client.training.batches import material_of
from wardround_simulation.attack.system import CPU, Finding, System, passed, plain_training

CANARIES, SEEDS = 500, 5
CONFIDENCE = 0.95
FALSE_ALARM = 1e-6  # probability of a false alarm, per figure
HONEST_AUDITS = 1000
_IMAGES_PER_CANARY = 2
CANARIES_ASK = "Is the participation of planted patients no easier to guess than the plan allows?"


@dataclass(frozen=True, kw_only=True)
class Audit:
    """One audit: the guesses, how many were right, the bound that they prove, and the signal.

    The signal is the mean score of the canaries that took part minus that of the others, in standard deviations of the
    noise.
    """

    guesses: int
    right: int
    epsilon_bound: float
    surely_bound: float  # the bound at confidence 1 - FALSE_ALARM
    signal: float


@dataclass(frozen=True, kw_only=True)
class Canaries:
    """The audits of several seeds, and the band in which audits of an honest system lie."""

    canaries: int
    guesses: int
    delta: float
    promised: float
    audits: tuple[Audit, ...]
    honest_low: float  # low to high: central 99 % of the bounds of `HONEST_AUDITS` simulated honest audits
    honest_median: float
    honest_high: float
    right_limit: int
    signal: float  # mean over the audits
    signal_expected: float
    signal_limit: float  # largest distance from `signal_expected` for the mean of honest audits
    finding: Finding

    @property
    def epsilon_bound(self) -> float:
        return max(audit.epsilon_bound for audit in self.audits)


class _CanaryNetwork(nn.Module):
    """A linear head with one input feature per canary. Training starts it from zero weights."""

    def __init__(self, canaries: int) -> None:
        super().__init__()
        self.head = nn.Linear(canaries, 1)

    def forward(self, features_ND: Tensor) -> Tensor:
        return self.head(features_ND)


def audit_canaries(
    system: System,
    study: Study,
    canaries: int = CANARIES,
    seeds: int = SEEDS,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Canaries | None:
    """Audit `seeds` trainings with `canaries` canaries each. Returns None if the study is not private.

    `progress(done, total)` is called after each training.
    """
    plan = plan_from_study(study)
    if not plan.private:
        return None
    honest = _honest_scores(plan, canaries)
    guesses = _best_guesses(honest, canaries, plan.delta)
    honest_right = _right_guesses(*honest, guesses)
    honest_bounds = np.array([epsilon_bound(canaries, guesses, right, plan.delta) for right in honest_right])
    right_limit = math.ceil(honest_right.mean() + stats.norm.isf(FALSE_ALARM) * max(0.5, honest_right.std()))
    expected, spread = _honest_signal(plan, canaries)
    signal_limit = float(stats.norm.isf(FALSE_ALARM / 2)) * spread / math.sqrt(seeds)
    audits = []
    for seed in range(seeds):
        scores_M, took_part_M = canary_scores(system, study, canaries, seed)
        right = int(_right_guesses(scores_M[None], took_part_M[None], guesses)[0])
        audits.append(
            Audit(
                guesses=guesses,
                right=right,
                epsilon_bound=epsilon_bound(canaries, guesses, right, plan.delta),
                surely_bound=epsilon_bound(canaries, guesses, right, plan.delta, 1 - FALSE_ALARM),
                signal=_signal(scores_M, took_part_M),
            )
        )
        progress(seed + 1, seeds)
    low, median, high = np.quantile(honest_bounds, (0.005, 0.5, 0.995)).tolist()
    return Canaries(
        canaries=canaries,
        guesses=guesses,
        delta=plan.delta,
        promised=plan.epsilon_asked,
        audits=tuple(audits),
        honest_low=low,
        honest_median=median,
        honest_high=high,
        right_limit=right_limit,
        signal=float(np.mean([audit.signal for audit in audits])),
        signal_expected=expected,
        signal_limit=signal_limit,
        finding=_judge(audits, plan, (low, high), right_limit, expected, signal_limit),
    )


def _judge(
    audits: Sequence[Audit],
    plan: PrivacyPlan,
    band: tuple[float, float],
    right_limit: float,
    expected: float,
    signal_limit: float,
) -> Finding:
    bound, signal = max(a.epsilon_bound for a in audits), float(np.mean([a.signal for a in audits]))
    broken = any(audit.surely_bound > plan.epsilon_asked for audit in audits)
    above = any(audit.right > right_limit for audit in audits) or signal > expected + signal_limit
    blind = signal < expected - signal_limit
    measured = f"ε above {bound:.2f}, signal {signal:.2f}"
    if broken:
        measured += ": more than was promised"
    elif above:
        measured += ": more than a correct system shows"
    elif blind:
        measured += ": less than a correct system shows: the canaries had no effect, so the audit is void"
    return Finding(
        name="canaries",
        question=CANARIES_ASK,
        measured=measured,
        limit=f"ε {plan.epsilon_asked:g}; correct system {band[0]:.2f}–{band[1]:.2f}, signal {expected:.2f} ± "
        f"{signal_limit:.2f}",
        verdict=passed(not (broken or above or blind)),
    )  # fmt: skip


def canary_scores(system: System, study: Study, canaries: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Train all rounds on the canaries that a coin flip selects, and return all canaries' scores.

    The coins come from `seed`, which belongs to the auditor.

    Returns:
        Each canary's score, which is how far its direction moved over all messages in units of the noise, and whether
        it took part; both (canaries,).
    """
    plan = plan_from_study(study)
    took_part_M = np.random.default_rng(seed).random(canaries) < 0.5
    unit = plan.noise_multiplier * plan.max_grad_norm
    # So small that the weights stay where canaries are clipped.
    rate = 1e-6 / max(unit, plan.max_grad_norm) * plan.expected_patients
    audited = _head_study(study, rate)
    scale = 1000 * max(1.0, plan.max_grad_norm)
    present = np.flatnonzero(took_part_M)
    rows_M = np.repeat(present, _IMAGES_PER_CANARY)
    features_ND = np.zeros((len(rows_M), canaries), dtype=np.float32)
    features_ND[np.arange(len(rows_M)), rows_M] = scale
    material = material_of(features_ND, np.ones(len(rows_M), dtype=np.int16), rows_M, np.ones(len(rows_M), dtype=bool))
    start = {
        "head.weight": np.zeros((1, canaries), dtype=np.float32),
        "head.bias": np.zeros(1, dtype=np.float32),
    }
    network, randomness = _CanaryNetwork(canaries), system.randomness()
    scores_M = np.zeros(canaries)
    for round_ in range(1, study.study.rounds + 1):
        after = system.train(audited, plan, network, start, material, round_, randomness, CPU)
        scores_M += np.float64(after["head.weight"][0])  # label 1 at logit 0: a step raises the weight
    return scores_M * plan.expected_patients / rate / unit, took_part_M


def _head_study(study: Study, rate: float) -> Study:
    content = plain_training(study, rate).model_dump()
    content["model"].update(init="random", init_sha256=None, trainable="head")
    for section, settings in linear_head(study.study.task).items():
        content[section].update(settings)
    return parse_study(content)


def _steps(plan: PrivacyPlan) -> int:
    return plan.rounds * plan.local_steps


def _honest_scores(plan: PrivacyPlan, canaries: int) -> tuple[np.ndarray, np.ndarray]:
    """Return scores and coins, both (A, M), of `HONEST_AUDITS` simulated audits of a system that follows its plan."""
    generator, steps = np.random.default_rng(20231107), _steps(plan)
    took_part_AM = generator.random((HONEST_AUDITS, canaries)) < 0.5
    drawn_AM = generator.binomial(steps, plan.sampling_rate, took_part_AM.shape) * took_part_AM
    noise_AM = math.sqrt(steps) * generator.normal(size=took_part_AM.shape)
    return drawn_AM / plan.noise_multiplier + noise_AM, took_part_AM


def _honest_signal(plan: PrivacyPlan, canaries: int) -> tuple[float, float]:
    """Return the mean and standard deviation of `_signal` for an honest system.

    There are two groups of about m/2 canaries each. The score of a canary that takes part is
    Binomial(T, q) / sigma + sqrt(T) N(0, 1); the score of the others is the noise alone. The signal is in units of
    sqrt(T), which is estimated from the others.
    """
    steps, rate = _steps(plan), plan.sampling_rate
    mean = math.sqrt(steps) * rate / plan.noise_multiplier
    sampling_variance = rate * (1 - rate) / plan.noise_multiplier**2
    half = canaries / 2
    return mean, math.sqrt((2 + sampling_variance) / half + mean**2 / (2 * half))


def _signal(scores_M: np.ndarray, took_part_M: np.ndarray) -> float:
    present, absent = scores_M[took_part_M], scores_M[~took_part_M]
    spread = float(absent.std(ddof=1))
    return float(present.mean() - absent.mean()) / max(spread, 1e-9)  # finite, because JSON has no infinity


def _right_guesses(scores_AM: np.ndarray, took_part_AM: np.ndarray, guesses: int) -> np.ndarray:
    """Return how many guesses are right, (A,).

    The guess is "took part" for the `guesses` / 2 highest scores and "did not" for the `guesses` / 2 lowest.
    """
    half = guesses // 2
    order_AM = np.argsort(scores_AM, axis=1)
    sorted_AM = np.take_along_axis(took_part_AM, order_AM, axis=1)
    return sorted_AM[:, -half:].sum(1) + (~sorted_AM[:, :half]).sum(1)


def _best_guesses(honest: tuple[np.ndarray, np.ndarray], canaries: int, delta: float) -> int:
    """Return the number of guesses that typically proves the largest bound.

    It is chosen on simulated audits, and therefore independently of the real audit's data.
    """
    few = (honest[0][:200], honest[1][:200])
    choices = sorted({2 * max(1, round(canaries * share / 2)) for share in (0.02, 0.04, 0.1, 0.2, 0.4, 0.7, 1.0)})
    choices = [guesses for guesses in choices if guesses <= canaries]

    def typical(guesses: int) -> float:
        return epsilon_bound(canaries, guesses, int(np.median(_right_guesses(*few, guesses))), delta)

    return max(choices, key=typical)


@functools.lru_cache(maxsize=4096)
def epsilon_bound(canaries: int, guesses: int, right: int, delta: float, confidence: float = CONFIDENCE) -> float:
    """Return the largest epsilon refuted by `right` of `guesses`: a lower bound on the true one at `confidence`."""
    chance = 1 - confidence
    if chance_of_so_many(canaries, guesses, right, 0.0, delta) >= chance:
        return 0.0
    low, high = 0.0, 1.0
    while chance_of_so_many(canaries, guesses, right, high, delta) < chance:
        low, high = high, 2 * high
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if chance_of_so_many(canaries, guesses, right, middle, delta) < chance else (
            low, middle,
        )  # fmt: skip
    return low


def chance_of_so_many(canaries: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """Return an upper bound under (epsilon, delta)-DP on the probability of `right` or more right guesses.

    There are `guesses` guesses among `canaries` coins. Under pure DP each guess is right at most as often as in
    randomised response, with probability e^eps / (1 + e^eps). Delta adds 2 m delta times the largest alpha by which
    tampering could shift the count (theorem 5.2).
    """
    accuracy = 1 / (1 + math.exp(-epsilon))
    beta = float(stats.binom.sf(right - 1, guesses, accuracy))
    mass = np.cumsum(stats.binom.pmf(np.arange(right - 1, -1, -1), guesses, accuracy))  # P[right > count >= right - i]
    alpha = float((mass / np.arange(1, right + 1)).max()) if right else 0.0
    return min(1.0, beta + 2 * canaries * delta * alpha)
