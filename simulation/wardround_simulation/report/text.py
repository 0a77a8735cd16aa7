"""Texts and number formats of a report. Those that sites and servers also use are in `wardround.text`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from wardround.text import count_text, epsilon_of, start_name
from wardround_simulation.report.evidence import RunEvidence
from wardround_simulation.report.measures import Interval, SiteFigures


def auc_text(value: float | None) -> str:
    """Format with three decimals; a dash for None."""
    return "–" if value is None else f"{value:.3f}"


def interval_text(interval: Interval) -> str:
    """Format as `0.851–0.934`; empty if there is no interval."""
    return "" if interval.low is None or interval.high is None else f"{interval.low:.3f}–{interval.high:.3f}"


def signed_interval_text(interval: Interval) -> str:
    """Format as `−0.031 to +0.012`; empty if there is no interval."""
    if interval.low is None or interval.high is None:
        return ""
    return f"{signed_text(interval.low)} to {signed_text(interval.high)}"


def verdict_text(site: SiteFigures) -> str:
    """Return the conclusion of a hospital's row in words. A worse result is called worse."""
    said = {"above": "federated is better", "below": "federated is worse", "unknown": "cannot be compared"}
    if site.verdict in said:
        return said[site.verdict]
    if site.difference.value == 0:
        return "the same"
    return "lower, not significant" if (site.difference.value or 0) < 0 else "higher, not significant"


def rounds_text(rounds: Sequence[int]) -> str:
    """Format as `round 4` or `rounds 4, 7–9`."""
    spans: list[list[int]] = []
    for at in sorted(rounds):
        if spans and at == spans[-1][1] + 1:
            spans[-1][1] = at
        else:
            spans.append([at, at])
    told = ", ".join(str(low) if low == high else f"{low}–{high}" for low, high in spans)
    return f"{'round' if len(rounds) == 1 else 'rounds'} {told}"


def signed_text(value: float | None) -> str:
    """Format as `+0.012`, with a typographic minus. A value that rounds to zero has no sign."""
    return "–" if value is None else "0.000" if abs(value) < 5e-4 else f"{value:+.3f}".replace("-", "−")


def is_private(evidence: RunEvidence) -> bool:
    """Return False if ε of the study, the run or any site is infinite or missing, else True."""
    told = [evidence.study.privacy.epsilon, (evidence.result.get("privacy") or {}).get("epsilon", "inf")]
    told += [site.get("epsilon", "inf") for site in (evidence.result.get("sites") or {}).values()]
    return all(math.isfinite(epsilon_of(value)) for value in told)


def largest_epsilon(evidence: RunEvidence) -> float:
    """Return the epsilon of the run as a whole; infinite without privacy.

    It is the maximum over sites, because their patients are disjoint.
    """
    if not is_private(evidence):
        return math.inf
    own = [epsilon_of(site["epsilon"]) for site in (evidence.result.get("sites") or {}).values()]
    return max([*own, epsilon_of(evidence.result["privacy"]["epsilon"])])


def headline(evidence: RunEvidence, aucs: Mapping[str, Interval]) -> list[str]:
    """Return the result in one sentence, followed by one for each kind of comparison that the run has."""
    test = evidence.result.get("test") or {}
    if test.get("auc") is None:
        if not test:
            return ["No patients were held out, so this run does not measure how good the model is."]
        return [
            f"The {count_text(int(test['patients']), 'held-out patient')} have only one label: no AUC can be computed."
        ]
    low, high = test.get("auc_ci95") or (None, None)
    told = Interval(value=test["auc"], low=low, high=high)
    within = f" (95 % interval {interval_text(told)})" if interval_text(told) else ""
    lines = [
        f"On {count_text(int(test['patients']), 'held-out patient')} the federated model reaches an AUC of "
        f"{auc_text(told.value)}{within}, counted per {evidence.unit}"
        + ("." if len(evidence.study.data.labels) == 2 else ", as the mean over the labels, each against all others.")
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
    """Return a summary of how many sites' own models the federated model beats, and which it does not.

    It names the sites where the federated model is worse, and counts the differences that are larger than chance. A
    first sentence compares with the start.
    """
    known = [site for site in sites if site.difference.value is not None]
    if not known:
        return ""
    above, below = ([s for s in known if (s.difference.value or 0) * sign > 0] for sign in (1, -1))
    clear = sum(site.verdict in ("above", "below") for site in known)
    first = _beside_start(known)
    sentence = (
        f"{first}{'It' if first else 'The federated model'} has a higher AUC than the site's own model at {len(above)} "
        f"of {len(known)} {'site' if len(known) == 1 else 'sites'} where both can be tested"
    )
    if below:
        named = ", ".join(f"{site.site} ({signed_text(site.difference.value)})" for site in below)
        sentence += f", and a lower one at {len(below)}: {named}"
    return (
        f"{sentence}. {clear or 'None'} of these differences from the site's own model {'is' if clear < 2 else 'are'} "
        "statistically significant (the 95 % interval excludes 0)."
    )


def _beside_start(sites: Sequence[SiteFigures]) -> str:
    """Return a sentence with the number of sites where the federated model beats the start, or "" if there is none."""
    pairs = [(s.intervals["federated"].value, s.intervals["start"].value) for s in sites if "start" in s.intervals]
    known = [(federated, start) for federated, start in pairs if federated is not None and start is not None]
    if not known:
        return ""
    above = sum(federated > start for federated, start in known)
    return f"The federated model has a higher AUC than the start at {above} of {count_text(len(known), 'site')}. "
