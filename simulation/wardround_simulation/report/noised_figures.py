"""The report's section on released figures, which a server computes without scores, next to the exact figures.

Only a simulation has the exact figures.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from wardround import text
from wardround.metrics import classification
from wardround.text import epsilon_of
from wardround.wire.reply_codes import code_text
from wardround_simulation.report import text as words
from wardround_simulation.report.evidence import RunEvidence
from wardround_simulation.report.measures import Interval, rows_by_unit

MANY_TIED = 0.2  # share of all pairs in one bin above which the bins hide too much of the order


def released_section(evidence: RunEvidence) -> dict[str, Any]:
    """Return the page's `released_*`: sentences and rows of figures.

    Both are empty if the run released no figures, or has no scores for comparison. For a reconstruction, the accept
    test shows the counts.
    """
    released = evidence.result.get("federated_test")
    if not released or evidence.scored("federated") is None:
        return {"released_rows": [], "released_lines": []}
    exact = _exact(evidence)
    rows = [_auc_row(released, exact), *_threshold_rows(released, exact), *_count_rows(released, exact)]
    return {"released_rows": rows, "released_lines": _lines(released)}


def _exact(evidence: RunEvidence) -> dict[str, float | None]:
    """Return the same figures computed by patient from the scores, which only a simulation has."""
    federated = evidence.scored("federated")
    if federated is None or federated.scores_N.ndim == 2 or not len(federated.labels_N):
        return {}
    scores_P, labels_P, _ = rows_by_unit(federated, "patient")
    return {
        "auc": classification.auc(scores_P, labels_P),
        "patients": float(len(labels_P)),
        "positives": float(labels_P.sum()),
        "excess": float(scores_P.mean() - labels_P.mean()),
        **{
            f"sensitivity {row:g}": classification.sensitivity_at_specificity(scores_P, labels_P, row)
            for row in (0.8, 0.9, 0.95)
        },
    }


def _row(name: str, value: str, interval: str, exact: str) -> dict[str, str]:
    return {"name": name, "value": value, "interval": interval, "exact": exact}


def _auc_row(released: Mapping[str, Any], exact: Mapping[str, float | None]) -> dict[str, str]:
    low, high = released.get("auc_ci95") or (None, None)
    within = words.interval_text(Interval(value=released.get("auc"), low=low, high=high))
    return _row("AUC", words.auc_text(released.get("auc")), within, words.auc_text(exact.get("auc")))


def _threshold_rows(released: Mapping[str, Any], exact: Mapping[str, float | None]) -> list[dict[str, str]]:
    rows = []
    for row in released.get("thresholds") or ():
        name = f"sensitivity at {row['specificity']:.0%} specificity"
        within = words.interval_text(Interval(value=row["sensitivity"], low=row["low"], high=row["high"]))
        shown = f"{row['sensitivity']:.3f} (score {row['threshold']:.2f})"
        rows.append(_row(name, shown, within, words.auc_text(exact.get(f"sensitivity {row['specificity']:g}"))))
    return rows


def _count_rows(released: Mapping[str, Any], exact: Mapping[str, float | None]) -> list[dict[str, str]]:
    rows, calibration = [], released.get("calibration")
    if calibration:
        within = words.signed_interval_text(
            Interval(value=calibration["excess"], low=calibration["low"], high=calibration["high"])
        )
        shown = words.signed_text(calibration["excess"])
        rows.append(_row("probability above frequency", shown, within, words.signed_text(exact.get("excess"))))
        noise = f"a perfect model: {calibration['ece_if_perfect']:.3f}"
        rows.append(_row("calibration error (ECE)", f"{calibration['ece']:.3f}", noise, "–"))
    for name, key in (("patients", "patients"), ("of them positive", "positives")):
        known = exact.get(key)
        rows.append(_row(name, f"{released[f'{key}_noised']:,}", "", "–" if known is None else f"{known:,.0f}"))
    return rows


def _lines(released: Mapping[str, Any]) -> list[str]:
    epsilon = epsilon_of(released["epsilon"])
    sites = text.count_text(len(released["sites"]), "hospital")
    if math.isinf(epsilon):
        lines = [
            f"{sites} released exact counts of held-out patients by score (ε = ∞): these patients have no privacy."
        ]
    else:
        lines = [
            f"{sites} released noised counts of held-out patients by score, once, each at ε = "
            f"{text.epsilon_text(epsilon)} per held-out patient (add or remove one, δ = 0), charged to the ledgers. "
            "The server made these figures from the sum of the counts; it received no scores."
        ]
    lines += [f"{row['site']}: {code_text(row['code'])}." for row in released.get("missing") or ()]
    if (released.get("tied_pairs") or 0) > MANY_TIED:
        lines.append(
            f"{released['tied_pairs']:.0%} of all pairs lie in one bin: the bins are too wide for these scores. A "
            "smaller evaluation.logit_scale would separate them better."
        )
    return lines
