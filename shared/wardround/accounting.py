"""Privacy accounting: compute epsilon from events, and the noise that a privacy guarantee needs.

Only events are stored (the mechanism, its noise and the number of releases), never epsilons: an epsilon is computed
from all events when it is needed. There are two kinds of mechanism: subsampled Gaussian sums (training) and pure
epsilon-DP releases (evaluation). Budgets are enforced with Rényi differential privacy (Mironov 2017; Mironov, Talwar,
Zhang 2019) as Opacus implements it, which is an upper bound. Two other accountants are for display only: the analytic
Gaussian mechanism (Balle, Wang 2018), which is exact if every patient takes part in every step, and the PRV accountant
(Gopi, Lee, Wutschitz 2021), with a time limit.
"""

from __future__ import annotations

import functools
import json
import math
import subprocess
import sys
import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import numpy as np

from wardround.errors import StudyError, WardroundError, required
from wardround.storage.json_numbers import json_number

# Any set of orders gives a valid bound; more orders give a tighter one. Fractional orders are slow to compute, so there
# are few of them above 3.
RDP_ORDERS = (
    *(1 + x / 10 for x in range(1, 20)),
    *(3.5 + x for x in range(8)),
    *range(3, 64),
    *(64, 72, 80, 96, 112, 128, 160, 192, 256, 384, 512),
)


@dataclass(frozen=True, kw_only=True)
class GaussianEvent:
    """`steps` releases of a sum of clipped units plus Gaussian noise.

    Each unit takes part in a step with probability `sampling_rate`; the noise's standard deviation is
    `noise_multiplier` times the clipping norm. A noise multiplier of 0 means no privacy. Raises `WardroundError` for
    values out of range.
    """

    noise_multiplier: float
    sampling_rate: float
    steps: int
    unit: str = "patient"

    def __post_init__(self) -> None:
        if not (self.noise_multiplier >= 0 and 0 < self.sampling_rate <= 1 and self.steps >= 0):
            raise WardroundError(
                f"impossible event: noise {self.noise_multiplier}, rate {self.sampling_rate}, steps {self.steps}"
            )

    @property
    def releases(self) -> int:
        """Number of releases computed from patients' data."""
        return self.steps

    @property
    def private(self) -> bool:
        """Whether the event has a finite epsilon: there is noise."""
        return self.noise_multiplier > 0

    def repeated(self, times: int) -> GaussianEvent:
        """Return the event repeated `times` times."""
        return replace(self, steps=self.steps * times)

    def rdp(self) -> np.ndarray:
        """Return the Rényi epsilon of the whole event at each of `RDP_ORDERS` (Mironov, Talwar, Zhang 2019)."""
        return _gaussian_rdp(self.sampling_rate, self.noise_multiplier) * self.steps


@dataclass(frozen=True, kw_only=True)
class PureEvent:
    """`count` releases, each (epsilon, 0)-DP by itself: for instance a histogram with Laplace or geometric noise.

    An infinite epsilon means an exact release without privacy. Raises `WardroundError` for values out of range.
    """

    epsilon: float
    count: int
    unit: str = "patient"

    def __post_init__(self) -> None:
        if not (self.epsilon >= 0 and self.count >= 0):
            raise WardroundError(f"impossible event: {self.count} releases of epsilon {self.epsilon}")

    @property
    def releases(self) -> int:
        """Number of releases computed from patients' data."""
        return self.count

    @property
    def private(self) -> bool:
        """Whether the event has a finite epsilon."""
        return math.isfinite(self.epsilon)

    def repeated(self, times: int) -> PureEvent:
        """Return the event repeated `times` times."""
        return replace(self, count=self.count * times)

    def rdp(self) -> np.ndarray:
        """Return the Rényi epsilon of the whole event at each of `RDP_ORDERS`, tight for pure epsilon-DP.

        Every (epsilon, 0)-DP mechanism is dominated by randomised response with p = e^epsilon / (1 + e^epsilon), whose
        divergence of order a is log(p^a (1-p)^(1-a) + (1-p)^a p^(1-a)) / (a - 1) (Mironov 2017, table II; domination:
        Kairouz, Oh, Viswanath 2015). With log p = -log(1 + e^-epsilon) the sum is p (e^((a-1) epsilon) + e^(-a
        epsilon)).
        """
        orders = np.asarray(RDP_ORDERS, float)
        log_p = -math.log1p(math.exp(-self.epsilon))
        divergence = (log_p + np.logaddexp((orders - 1) * self.epsilon, -orders * self.epsilon)) / (orders - 1)
        return self.count * np.maximum(divergence, 0.0)  # rounding may leave -1e-17 for a tiny epsilon


Event = GaussianEvent | PureEvent


@dataclass(frozen=True, kw_only=True)
class Epsilon:
    """An epsilon with everything that gives it a meaning. All accountants return this type, never a bare float."""

    value: float
    delta: float
    accountant: str
    unit: str = "patient"
    relation: str = "add or remove one"

    def __str__(self) -> str:
        if math.isinf(self.value):
            return f"no privacy (epsilon = inf per {self.unit})"
        return (
            f"epsilon = {self.value:.3g} per {self.unit} ({self.relation}, delta = {self.delta:g}, {self.accountant})"
        )

    def to_json(self) -> dict[str, object]:
        """Return the fields as in `result.json`, where infinity is the string "inf"."""
        fields = asdict(self)
        value = fields.pop("value")
        return {"epsilon": json_number(value), **fields}


def spent(events: Iterable[Event], delta: float) -> Epsilon:
    """Return the epsilon of all events together at `delta`.

    Budgets are enforced with this epsilon, and it is the one that a study guarantees. All events compose in RDP. The
    epsilons of pure events may also be added, for any delta (Dwork, Roth 2014, theorem 3.16); the smaller of the two
    bounds is returned. For pure events only, the sum holds at delta 0, and a result that uses it has that delta.
    """
    name = f"RDP, opacus {version('opacus')}"
    events = [event for event in events if event.releases]
    if not events:
        return Epsilon(value=0.0, delta=delta, accountant=name)
    if any(not event.private for event in events):
        return Epsilon(value=math.inf, delta=delta, accountant=name)
    pure = [event for event in events if isinstance(event, PureEvent)]
    gaussian = [event for event in events if not isinstance(event, PureEvent)]
    together = Epsilon(value=_epsilon_of_rdp(events, delta), delta=delta, accountant=name)
    if not pure:
        return together
    added = sum(event.epsilon * event.count for event in pure)
    if gaussian:
        sums = Epsilon(value=_epsilon_of_rdp(gaussian, delta) + added, delta=delta, accountant=f"{name}, and sum")
    else:
        sums = Epsilon(value=added, delta=0.0, accountant="sum of pure epsilons")
    return sums if sums.value < together.value else together


def _epsilon_of_rdp(events: Iterable[Event], delta: float) -> float:
    total = np.sum([event.rdp() for event in events], axis=0)
    with warnings.catch_warnings():  # "optimal order is the largest" means that the bound is loose, not wrong
        warnings.simplefilter("ignore")
        value, _ = _opacus_rdp().get_privacy_spent(orders=RDP_ORDERS, rdp=total, delta=delta)
    return max(0.0, float(value))


@functools.lru_cache(maxsize=256)
def _gaussian_rdp(sampling_rate: float, noise_multiplier: float) -> np.ndarray:
    rdp = _opacus_rdp().compute_rdp(q=sampling_rate, noise_multiplier=noise_multiplier, steps=1, orders=RDP_ORDERS)
    return np.asarray(rdp)


@functools.cache
def _opacus_rdp() -> ModuleType:
    """Return Opacus's module of RDP formulas, which needs numpy and scipy alone.

    `import opacus` would load torch, which takes longer than everything else that a `wardround-site status` does.
    """
    package = find_spec("opacus")
    if package is None or not package.submodule_search_locations:
        raise WardroundError("opacus is not installed; install the pinned versions again")
    path = Path(package.submodule_search_locations[0]) / "accountants" / "analysis" / "rdp.py"
    spec = required(spec_from_file_location("opacus_rdp", path), str(path))
    module = module_from_spec(spec)
    required(spec.loader, str(path)).exec_module(module)
    return module


@functools.lru_cache(maxsize=256)
def calibrate_noise(*, epsilon: float, delta: float, sampling_rate: float, steps: int) -> float:
    """Return the smallest noise multiplier with which `steps` steps cost at most `epsilon` at `delta`.

    The result is accurate to 0.1 % and rounded to the safe side; for an infinite epsilon it is 0. Raises `StudyError`
    if no noise multiplier up to 10,000 suffices.
    """
    if math.isinf(epsilon):
        return 0.0

    def cost(noise_multiplier: float) -> float:
        event = GaussianEvent(noise_multiplier=noise_multiplier, sampling_rate=sampling_rate, steps=steps)
        return spent([event], delta).value

    low, high = 1e-2, 1.0
    while cost(high) > epsilon:
        low, high = high, high * 2
        if high > 1e4:
            raise StudyError(
                f"privacy.epsilon: {epsilon:g} at delta {delta:g} over {steps} steps needs more noise than is useful"
            )
    if cost(low) <= epsilon:
        return low
    from scipy.optimize import brentq

    root = brentq(lambda log: math.log(cost(math.exp(log)) / epsilon), math.log(low), math.log(high), xtol=2e-4)
    noise_multiplier = math.exp(root)
    while cost(noise_multiplier) > epsilon:
        noise_multiplier *= 1.0002
    return noise_multiplier


def spent_exactly(events: Iterable[Event], delta: float) -> Epsilon | None:
    """Return the exact epsilon of the analytic Gaussian mechanism.

    T steps of multiplier s compose to one of multiplier s / sqrt(T), and delta(epsilon) = Phi(mu/2 - epsilon/mu) -
    exp(epsilon) Phi(-mu/2 - epsilon/mu) with mu = sqrt(sum T/s^2) (Balle, Wang 2018, theorem 8). Returns None if an
    event samples patients or is not Gaussian.
    """
    released = [event for event in events if event.releases]
    gaussian = [event for event in released if isinstance(event, GaussianEvent) and event.sampling_rate >= 1]
    if len(gaussian) < len(released):
        return None
    name = "analytic Gaussian"
    if not gaussian:
        return Epsilon(value=0.0, delta=delta, accountant=name)
    if any(event.noise_multiplier == 0 for event in gaussian):
        return Epsilon(value=math.inf, delta=delta, accountant=name)
    from scipy.special import log_ndtr

    mu = math.sqrt(sum(event.steps / event.noise_multiplier**2 for event in gaussian))

    def delta_of(epsilon: float) -> float:
        return math.exp(log_ndtr(mu / 2 - epsilon / mu)) - math.exp(epsilon + log_ndtr(-mu / 2 - epsilon / mu))

    low, high = 0.0, 1.0
    while delta_of(high) > delta:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if delta_of(middle) > delta else (low, middle)
    return Epsilon(value=high, delta=delta, accountant=name)


def spent_prv(events: Iterable[Event], delta: float, timeout_s: float = 20.0) -> Epsilon | None:
    """Return the epsilon of the PRV accountant, for display only; budgets are enforced with `spent`.

    The accountant runs in a separate process, which is killed after `timeout_s` seconds, because it hangs or fails for
    some settings. Returns None if it does not finish in time or fails, if there are no events, or if an event is not
    Gaussian or has no noise.
    """
    events = [event for event in events if event.releases]
    if not events or any(isinstance(event, PureEvent) or not event.private for event in events):
        return None
    question = json.dumps({"delta": delta, "events": [asdict(event) for event in events]})
    command = [sys.executable, "-P", "-m", "wardround.accounting"]  # -P: no modules from the working folder
    try:
        answer = subprocess.run(
            command, input=question, capture_output=True, encoding="ascii", timeout=timeout_s, check=True
        )
        value = float(answer.stdout)
    except (subprocess.SubprocessError, ValueError, OSError):
        return None
    return (
        Epsilon(value=value, delta=delta, accountant=f"PRV, opacus {version('opacus')}")
        if math.isfinite(value)
        else None
    )


def _answer_prv() -> None:
    from opacus.accountants import PRVAccountant

    question = json.load(sys.stdin)
    accountant = PRVAccountant()
    accountant.history = [(e["noise_multiplier"], e["sampling_rate"], e["steps"]) for e in question["events"]]
    print(accountant.get_epsilon(question["delta"]))


if __name__ == "__main__":
    _answer_prv()
