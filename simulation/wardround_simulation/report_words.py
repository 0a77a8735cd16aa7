"""How a report says things: numbers as text, and epsilon in plain words that stay true.

The promise is Dwork and Roth's (2014, definition 2.4) for neighbours that differ by one patient; what it means for
somebody who guesses whether a patient took part is theorem 2.1 of Kairouz, Oh and Viswanath (2015): right at most
(e^ε + δ) / (e^ε + 1) of the time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from wardround.study import Study
from wardround_simulation.evidence import RunEvidence, epsilon_of
from wardround_simulation.measures import Interval, SiteFigures

CODES = {
    "late": "answered after the deadline, or not at all",
    "failed": "the site failed; its own log says why",
    "unknown": "no reason given",
    "refused:no_spare_rounds": "the site's budget for this run is used up, spare rounds included",
    "refused:not_approved": "the site has not approved this study",
    "refused:evaluation_off": "the site releases no figures about held-out patients",
    "refused:no_privacy": "the site does not allow ε = ∞",
}


def auc_text(value: float | None) -> str:
    """Three decimals, or a dash."""
    return "–" if value is None else f"{value:.3f}"


def interval_text(interval: Interval) -> str:
    """`0.851–0.934`, or empty when there is none."""
    return "" if interval.low is None or interval.high is None else f"{interval.low:.3f}–{interval.high:.3f}"


def signed_interval_text(interval: Interval) -> str:
    """`−0.031 to +0.012`, or empty when there is none."""
    if interval.low is None or interval.high is None:
        return ""
    return f"{signed_text(interval.low)} to {signed_text(interval.high)}"


def verdict_text(site: SiteFigures) -> str:
    """What a hospital reads out of its row; worse is called worse."""
    said = {"above": "federated is better", "below": "federated is worse", "unknown": "cannot be compared"}
    if site.verdict in said:
        return said[site.verdict]
    if site.difference.value == 0:
        return "the same"
    return "lower, within chance" if site.difference.value < 0 else "higher, within chance"


def rounds_text(rounds: Sequence[int]) -> str:
    """`round 4`, `rounds 4, 7–9`."""
    spans: list[list[int]] = []
    for at in sorted(rounds):
        if spans and at == spans[-1][1] + 1:
            spans[-1][1] = at
        else:
            spans.append([at, at])
    told = ", ".join(str(low) if low == high else f"{low}–{high}" for low, high in spans)
    return f"{'round' if len(rounds) == 1 else 'rounds'} {told}"


def signed_text(value: float | None) -> str:
    """`+0.012`, with a true minus; what rounds to nothing has no sign."""
    return "–" if value is None else "0.000" if abs(value) < 5e-4 else f"{value:+.3f}".replace("-", "−")


def count_text(count: int, noun: str) -> str:
    """`1 patient`, `1,204 patients`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def epsilon_text(value: Any, decimals: int | None = None) -> str:
    """At most two decimals (in a column: always `decimals`), rounded up, for an ε is an upper bound; `∞` when there
    is no privacy.
    """
    epsilon = epsilon_of(value)
    if math.isinf(epsilon):
        return "∞"
    return f"{_rounded_up(epsilon, 2):g}" if decimals is None else f"{_rounded_up(epsilon, decimals):.{decimals}f}"


def seconds_text(seconds: float) -> str:
    """`40 ms`, `1.2 s`, `12 s`, `3 min 20 s`, `2 h 05 min`."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def bytes_text(count: float) -> str:
    """`312 B`, `7.8 kB`, `1.2 GB`: decimal units, as network people count."""
    if count < 1000:
        return f"{count:.0f} B"
    power = min(int(math.log10(count) / 3), 3)
    return f"{count / 1000**power:,.1f} {('kB', 'MB', 'GB')[power - 1]}"


def code_text(code: str) -> str:
    """A reply's code in words; an unknown one as it is."""
    if code in CODES:
        return CODES[code]
    kind, _, detail = code.partition(":")
    if kind == "refused":
        return f"the site refused: {detail.replace('_', ' ').replace('-', ' ') or 'no reason given'}"
    if kind == "invalid":
        return f"the reply failed its checks: {detail.replace('_', ' ').replace('-', ' ') or 'no detail'}"
    return code


def start_name(study: Study) -> str:
    """What the model was before any hospital's data."""
    return {"phantom": "public start", "random": "random start"}.get(study.model.init, "given start")


def is_private(evidence: RunEvidence) -> bool:
    """False as soon as the study, the run or one site says ε = inf, or does not say its ε at all."""
    told = [evidence.study.privacy.epsilon, (evidence.result.get("privacy") or {}).get("epsilon", "inf")]
    told += [site.get("epsilon", "inf") for site in (evidence.result.get("sites") or {}).values()]
    return all(math.isfinite(epsilon_of(value)) for value in told)


def largest_epsilon(evidence: RunEvidence) -> float:
    """What the run as a whole has spent: the maximum over sites, for their patients differ; inf without privacy."""
    if not is_private(evidence):
        return math.inf
    own = [epsilon_of(site["epsilon"]) for site in (evidence.result.get("sites") or {}).values()]
    return max([*own, epsilon_of(evidence.result["privacy"]["epsilon"])])


def promise(epsilon: float, delta: float) -> list[str]:
    """(ε, δ) per patient in sentences, each of them true as it stands. Raises ValueError for ε = inf, where there
    is no promise.
    """
    if math.isinf(epsilon):
        raise ValueError("there is no promise to put into words")
    factor = _factor_text(epsilon)
    guess = (math.exp(epsilon) + delta) / (math.exp(epsilon) + 1) if epsilon < 700 else 1.0
    return [
        "Take any one patient of any one hospital, with all images this patient contributed. How much this patient can "
        "matter is bounded: with or without any one patient, the probability of anything that can be seen in all "
        f"messages the hospital sends, or concluded from them, differs by at most the factor e^ε = {factor} "
        f"(ε = {epsilon_text(epsilon)}), apart from a remainder of at most δ = {delta:g}. The model is made from these "
        "messages, so the same holds for the model.",
        "Put as a guess: somebody who knows everything else, all other patients included, and has to tell from all "
        f"messages whether this patient took part, at even odds, is right at most {_percent_up(guess)} of the time "
        "(a coin is right 50 % of the time). It is a bound on every possible attack, not the measured success of one.",
    ]


def headline(evidence: RunEvidence, aucs: Mapping[str, Interval]) -> list[str]:
    """The result in one sentence, and one more for each comparison the run has."""
    test = evidence.result.get("test") or {}
    if test.get("auc") is None:
        if not test:
            return ["No patients were held out, so this run says nothing about how good the model is."]
        return [
            f"The {count_text(int(test['patients']), 'held-out patient')} have one label only: no AUC can be computed."
        ]
    low, high = test.get("auc_ci95") or (None, None)
    told = Interval(value=test["auc"], low=low, high=high)
    within = f" (95 % interval {interval_text(told)})" if interval_text(told) else ""
    lines = [
        f"On {count_text(int(test['patients']), 'held-out patient')} the federated model reaches an AUC of "
        f"{auc_text(told.value)}{within}, counted per {evidence.unit}"
        + ("." if len(evidence.study.data.labels) == 2 else ", as the mean over the labels, each against the rest.")
    ]
    beside = {
        "start": f"the {start_name(evidence.study)}, before any hospital's data:",
        "pooled": "all data in one place:",
    }
    rest = [f"{said} {auc_text(aucs[name].value)}" for name, said in beside.items() if name in aucs]
    if rest:
        lines.append(f"For comparison, {'; '.join(rest)}.")
    external = evidence.result.get("external_test") or {}
    if external.get("auc") is not None:
        low, high = external.get("auc_ci95") or (None, None)
        between = interval_text(Interval(value=external["auc"], low=low, high=high))
        lines.append(
            f"On the external test set, {count_text(int(external['patients']), 'other patient')}, it reaches "
            f"{auc_text(external['auc'])}" + (f" ({between})." if between else ".")
        )
    return lines


def worth_it(sites: Sequence[SiteFigures]) -> str:
    """One honest sentence over the sites: where the federated model is above, below, or level with the site's own."""
    known = [site for site in sites if site.difference.value is not None]
    if not known:
        return ""
    above, below = ([s for s in known if s.difference.value * sign > 0] for sign in (1, -1))
    clear = sum(site.verdict in ("above", "below") for site in known)
    sentence = (
        f"Federated is above the site's own model at {len(above)} of {len(known)} "
        f"{'site' if len(known) == 1 else 'sites'} where both can be tested"
    )
    if below:
        named = ", ".join(f"{site.site} ({signed_text(site.difference.value)})" for site in below)
        sentence += f", and below it at {len(below)}: {named}"
    return (
        f"{sentence}. {clear or 'None'} of these differences {'is' if clear < 2 else 'are'} larger than chance "
        "explains (the 95 % interval leaves out 0)."
    )


def _rounded_up(value: float, decimals: int) -> float:
    scale = 10**decimals
    return math.ceil(value * scale - 1e-6) / scale


def _factor_text(epsilon: float) -> str:
    if epsilon > 20:
        return f"10^{math.ceil(epsilon / math.log(10))}"
    factor = math.exp(epsilon)
    return f"{_rounded_up(factor, 2):g}" if factor < 100 else f"{math.ceil(factor):,}"


def _percent_up(share: float) -> str:
    """Rounded up to a tenth, in steps fine enough that a large share does not become 100 % by rounding alone."""
    for decimals in (1, 2, 3, 4, 6):
        percent = _rounded_up(share * 100, decimals)
        if percent < 100:
            return f"{percent:.{decimals}f}".rstrip("0").rstrip(".") + " %"  # not :g, which rounds to 6 digits
    return "100 %"
