"""Aggregate the sites' replies into the next model: pure arithmetic over dicts of arrays, without network or disk.

- Mean of a round: `RunningMean`, with public weights, in float64, folded in the order of site names, with one reply in
  memory at a time.
- Server step: FedAvg and FedProx use the mean (McMahan et al. 2017; the site adds the proximal term of Li et al. 2020);
  FedAdam moves towards it by Adam (Reddi et al. 2021, "Adaptive federated optimization", algorithm 2).
- Released model: the last one, a bias-corrected exponential average, or the mean of the last part of the run.

Formal guarantee: aggregation is post-processing of the replies with public numbers, so it costs no privacy. Site
weights come from the study, never from a site's number of patients, which is private.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from wardround.errors import RoundError, StudyError
from wardround.study.schema import AggregationSection

Weights = dict[str, np.ndarray]

ADAM_BETA1 = 0.9
ADAM_BETA2 = 0.99
ADAM_TAU = 1e-3  # "degree of adaptivity", the default of Reddi et al.
_CHUNK = 1 << 20  # values converted at once, to avoid a float64 copy of a whole reply


def site_weight(settings: AggregationSection, site: str) -> float:
    """Return the public weight of a site: 1, or the study's number.

    Raises `StudyError` if the study gives weights but none for this site.
    """
    if not settings.site_weights:
        return 1.0
    if site not in settings.site_weights:
        named = ", ".join(sorted(settings.site_weights))
        raise StudyError(f"aggregation.site_weights: names {named} but not {site}; name every site, or none")
    return settings.site_weights[site]


class RunningMean:
    """The weighted mean of replies, folded in one at a time.

    Memory use is one float64 copy of the model, regardless of the number of sites. Replies must be folded in ascending
    order of site names, so that the result is bit-identical whatever the order in which the sites finish.
    """

    def __init__(self, like: Mapping[str, np.ndarray]) -> None:
        self._sum = {name: np.zeros(array.shape, np.float64) for name, array in like.items()}
        self._weight = 0.0
        self._last_site: str | None = None

    def fold(self, site: str, weights: Mapping[str, np.ndarray], weight: float) -> None:
        """Add `weight` times a reply (float32, the expected names and shapes).

        Raises `RoundError` if the sites come out of order or twice.
        """
        if self._last_site is not None and site <= self._last_site:
            raise RoundError(f"replies are out of order or duplicated: {site} after {self._last_site}")
        self._last_site = site
        for name, total in self._sum.items():
            flat_total, flat = total.reshape(-1), weights[name].reshape(-1)
            for start in range(0, flat.size, _CHUNK):
                flat_total[start : start + _CHUNK] += weight * flat[start : start + _CHUNK].astype(np.float64)
        self._weight += weight

    def mean(self) -> Weights:
        """Return the mean (float64). Call it once: the sum is divided in place.

        Raises `RoundError` if nothing was folded.
        """
        if self._weight <= 0:
            raise RoundError("there is no reply to average")
        for total in self._sum.values():
            total /= self._weight
        return self._sum


@dataclass(frozen=True, kw_only=True)
class ServerState:
    """The state between rounds: global weights (float32) and FedAdam's moments (float64; else empty)."""

    weights: Weights
    first_moment: Weights
    second_moment: Weights


def start_server(settings: AggregationSection, weights: Mapping[str, np.ndarray]) -> ServerState:
    """Return the state before round 1. FedAdam's second moment starts at tau squared, as in Reddi et al."""
    adaptive = weights if settings.strategy == "fedadam" else {}
    return ServerState(
        weights={name: np.array(array, np.float32) for name, array in weights.items()},
        first_moment={name: np.zeros(array.shape) for name, array in adaptive.items()},
        second_moment={name: np.full(array.shape, ADAM_TAU**2) for name, array in adaptive.items()},
    )


def step_server(settings: AggregationSection, state: ServerState, mean: Mapping[str, np.ndarray]) -> ServerState:
    """Return the state after a round whose replies had this mean (float64).

    FedAvg, FedProx: x = mean. FedAdam, with D = mean - x: m = b1 m + (1 - b1) D, v = b2 v + (1 - b2) D^2,
    x = x + server_learning_rate m / (sqrt(v) + tau).
    """
    if settings.strategy != "fedadam":
        return ServerState(weights=_to_float32(mean), first_moment={}, second_moment={})
    weights, first, second = {}, {}, {}
    for name, before in state.weights.items():
        pull = mean[name] - before
        first[name] = ADAM_BETA1 * state.first_moment[name] + (1 - ADAM_BETA1) * pull
        second[name] = ADAM_BETA2 * state.second_moment[name] + (1 - ADAM_BETA2) * pull**2
        weights[name] = before + settings.server_learning_rate * first[name] / (np.sqrt(second[name]) + ADAM_TAU)
    return ServerState(weights=_to_float32(weights), first_moment=first, second_moment=second)


@dataclass(frozen=True, kw_only=True)
class ReleaseState:
    """The running average of global models: a float64 sum (empty for `release = last`) and its number of models."""

    total: Weights
    count: int


def start_release(settings: AggregationSection, weights: Mapping[str, np.ndarray]) -> ReleaseState:
    """Return the state before round 1."""
    averaged = {} if settings.release == "last" else weights
    return ReleaseState(total={name: np.zeros(array.shape) for name, array in averaged.items()}, count=0)


def tail_starts(settings: AggregationSection, rounds: int) -> int:
    """Return the first round (1-based) of `tail_mean`, which averages the last ceil(tail_fraction x rounds) models."""
    return rounds - math.ceil(settings.tail_fraction * rounds - 1e-9) + 1


def fold_release(
    settings: AggregationSection, rounds: int, state: ReleaseState, round: int, weights: Mapping[str, np.ndarray]
) -> ReleaseState:
    """Add the global model after `round` (1-based, of `rounds`) to the average, in place."""
    if settings.release == "last" or (settings.release == "tail_mean" and round < tail_starts(settings, rounds)):
        return state
    decay = settings.ema_decay
    for name, total in state.total.items():
        if settings.release == "ema":
            total *= decay
            total += (1 - decay) * weights[name]
        else:
            total += weights[name]
    return ReleaseState(total=state.total, count=state.count + 1)


def released_weights(settings: AggregationSection, state: ReleaseState, last: Mapping[str, np.ndarray]) -> Weights:
    """Return the model to release (float32): last model, EMA over its bias correction 1 - decay^count, or tail mean.

    If nothing was averaged yet (a run that stopped before its tail), the last model is returned.
    """
    if state.count == 0:
        return {name: np.array(array, np.float32) for name, array in last.items()}
    whole = 1 - settings.ema_decay**state.count if settings.release == "ema" else state.count
    return _to_float32({name: total / whole for name, total in state.total.items()})


def _to_float32(weights: Mapping[str, np.ndarray]) -> Weights:
    return {name: np.asarray(array, np.float32) for name, array in weights.items()}
