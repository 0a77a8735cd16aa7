"""Numbers, sizes and times as text for people, and the meaning of epsilon in plain and correct words.

The guarantee is that of Dwork and Roth (2014, definition 2.4) for neighbours that differ by one patient. Its meaning
for somebody who guesses whether a patient took part follows from theorem 2.1 of Kairouz, Oh and Viswanath (2015): the
guess is right at most (e^ε + δ) / (e^ε + 1) of the time.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from wardround.storage.json_numbers import number_of_json

if TYPE_CHECKING:
    from wardround.study.load import Study


def epsilon_of(value: Any) -> float:
    """Read an ε from JSON, a number or the string "inf". Raises `ValueError` for a negative number, NaN or text."""
    epsilon = float(number_of_json(value))
    if not epsilon >= 0:
        raise ValueError("an epsilon is a number that is not negative, or inf")
    return epsilon


def count_text(count: int, noun: str) -> str:
    """Format a count with its noun: `1 patient`, `1,204 patients`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def epsilon_text(value: Any, decimals: int | None = None) -> str:
    """Format an ε with at most two decimals or exactly `decimals` (for a column); `∞` if there is no privacy.

    The number is rounded up, because an ε is an upper bound.
    """
    epsilon = epsilon_of(value)
    if math.isinf(epsilon):
        return "∞"
    return f"{_rounded_up(epsilon, 2):g}" if decimals is None else f"{_rounded_up(epsilon, decimals):.{decimals}f}"


def seconds_text(seconds: float) -> str:
    """Format a duration: `40 ms`, `1.2 s`, `12 s`, `3 min 20 s`, `2 h 05 min`."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def bytes_text(count: float) -> str:
    """Format a size in decimal units, as is usual for networks: `312 B`, `7.8 kB`, `1.2 GB`."""
    if count < 1000:
        return f"{count:.0f} B"
    power = min(int(math.log10(count) / 3), 3)
    return f"{count / 1000**power:,.1f} {('kB', 'MB', 'GB')[power - 1]}"


def start_name(study: Study) -> str:
    """Return a name for the model before training on any hospital's data."""
    return {"phantom": "public start", "random": "random start"}.get(study.model.init, "given start")


def promise(epsilon: float, delta: float) -> list[str]:
    """Describe an (ε, δ) guarantee per patient in sentences, each of which is correct on its own.

    Raises `ValueError` for ε = inf, which is no guarantee.
    """
    if math.isinf(epsilon):
        raise ValueError("there is no guarantee to describe")
    factor = _factor_text(epsilon)
    guess = (math.exp(epsilon) + delta) / (math.exp(epsilon) + 1) if epsilon < 700 else 1.0
    return [
        "Take any one patient of any one hospital, with all data this patient contributed. How much this patient can "
        "matter is bounded: with or without any one patient, the probability of anything that can be seen in all "
        f"messages the hospital sends, or concluded from them, differs by at most the factor e^ε = {factor} "
        f"(ε = {epsilon_text(epsilon)}), apart from a remainder of at most δ = {delta:g}. The model is made from these "
        "messages, so the same holds for the model.",
        "Put as a guess: somebody who knows everything else, all other patients included, and has to tell from all "
        f"messages whether this patient took part, at even odds, is right at most {_percent_up(guess)} of the time "
        "(a coin is right 50 % of the time). It is a bound on every possible attack, not the measured success of one.",
    ]


def _rounded_up(value: float, decimals: int) -> float:
    scale = 10**decimals
    return math.ceil(value * scale - 1e-6) / scale


def _factor_text(epsilon: float) -> str:
    if epsilon > 20:
        return f"10^{math.ceil(epsilon / math.log(10))}"
    factor = math.exp(epsilon)
    return f"{_rounded_up(factor, 2):g}" if factor < 100 else f"{math.ceil(factor):,}"


def _percent_up(share: float) -> str:
    """Format a share as a percentage, rounded up to a tenth, or finer where rounding alone would give 100 %."""
    for decimals in (1, 2, 3, 4, 6):
        percent = _rounded_up(share * 100, decimals)
        if percent < 100:
            return f"{percent:.{decimals}f}".rstrip("0").rstrip(".") + " %"  # not :g, which rounds to 6 digits
    return "100 %"
