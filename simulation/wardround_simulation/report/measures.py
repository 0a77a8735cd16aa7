"""Compute the numbers that a run's report shows: the figures of each setting and site, and the missing replies.

The figures are computed from the scores of held-out patients by `wardround.metrics.classification`, with an interval
over patients.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from wardround.metrics import classification
from wardround.metrics.intervals import auc_difference
from wardround.tasks.assessment import SETTINGS, ScoredSet
from wardround_simulation.report.evidence import RunEvidence

Verdict = Literal["above", "below", "unclear", "unknown"]


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An AUC with its 95 % interval; all None if the patients have only one label."""

    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, kw_only=True)
class SiteFigures:
    """The figures on one site's held-out patients.

    `intervals` holds the AUC of each setting, and `difference` is federated minus alone on the same patients.
    """

    site: str
    patients: int
    intervals: Mapping[str, Interval]  # by setting
    difference: Interval

    @property
    def verdict(self) -> Verdict:
        """Whether the federated model beats the site's own; `unclear` if the difference's interval contains 0."""
        if self.difference.value is None:
            return "unknown"
        if self.difference.low is not None and self.difference.low > 0:
            return "above"
        if self.difference.high is not None and self.difference.high < 0:
            return "below"
        return "unclear"


def whole_test_set(evidence: RunEvidence) -> dict[str, Interval]:
    """Return the AUC of each setting on all held-out patients, except `alone`, whose models differ by site."""
    scored = {setting: evidence.scored(setting) for setting in SETTINGS if setting != "alone"}
    return {setting: _interval(one, evidence.unit, None) for setting, one in scored.items() if one is not None}


def site_figures(evidence: RunEvidence) -> list[SiteFigures]:
    """Return one entry for each site that has held-out images, in the order of names."""
    if not evidence.predictions:
        return []
    sites = sorted({str(site) for scored in evidence.predictions for site in np.unique(scored.sites_N)})
    return [_one_site(evidence, site) for site in sites]


def rows_by_unit(scored: ScoredSet, unit: str, site: str | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return scores, labels and patients of one site or of all, with one row per unit.

    If the unit is the patient, a patient's score is the maximum over the patient's images.
    """
    keep_N = np.ones(len(scored.labels_N), dtype=bool) if site is None else np.asarray(scored.sites_N) == site
    rows = tuple(np.asarray(column)[keep_N] for column in (scored.scores_N, scored.labels_N, scored.patients_N))
    if unit == "patient" and rows[0].ndim == 1 and len(rows[1]):
        return classification.patient_scores(*rows)
    return rows


def missing_replies(evidence: RunEvidence) -> dict[tuple[int, str], str]:
    """Return (round, site) -> code for each reply that is not in its round's model."""
    missing = {(int(row["round"]), str(row["site"])): str(row["code"]) for row in evidence.metrics if row.get("code")}
    for entry in _entries(evidence.result.get("missing")):
        missing.setdefault((int(entry["round"]), str(entry["site"])), str(entry.get("code") or "unknown"))
    return missing


def _entries(missing: Any) -> list[Mapping[str, Any]]:
    """Return the valid entries of result.json's `missing`, a list of {round, site, code}."""
    return [entry for entry in missing or () if isinstance(entry, Mapping) and "round" in entry and "site" in entry]


def _one_site(evidence: RunEvidence, site: str) -> SiteFigures:
    own = {setting: evidence.scored(setting, site if setting == "alone" else None) for setting in SETTINGS}
    known = {setting: scored for setting, scored in own.items() if scored is not None}
    patients = (
        max(len(np.unique(np.asarray(s.patients_N)[np.asarray(s.sites_N) == site])) for s in known.values())
        if known
        else 0
    )
    return SiteFigures(
        site=site,
        patients=patients,
        intervals={setting: _interval(scored, evidence.unit, site) for setting, scored in known.items()},
        difference=_difference(own["federated"], own["alone"], evidence.unit, site),
    )


def _interval(scored: ScoredSet, unit: str, site: str | None) -> Interval:
    scores, labels_N, patients_N = rows_by_unit(scored, unit, site)
    if scores.ndim == 2:
        estimate = classification.bootstrap(classification.macro_auc, scores, labels_N, patients_N)
    else:
        estimate = classification.auc_interval(scores, labels_N, patients_N)
    return (
        Interval(value=None)
        if estimate is None
        else Interval(value=estimate.value, low=estimate.low, high=estimate.high)
    )


def _difference(first: ScoredSet | None, second: ScoredSet | None, unit: str, site: str) -> Interval:
    """Return the AUC of `first` minus that of `second` on the same patients.

    The interval resamples patients for both together, so variation that both share cancels.

    Raises:
        ValueError: If the two were scored on different images.
    """
    if first is None or second is None:
        return Interval(value=None)
    if not (np.array_equal(first.patients_N, second.patients_N) and np.array_equal(first.labels_N, second.labels_N)):
        raise ValueError("two settings were scored on different images; their difference is meaningless")
    one, labels_N, patients_N = rows_by_unit(first, unit, site)
    two = rows_by_unit(second, unit, site)[0]
    estimate = auc_difference(one, two, labels_N, patients_N)
    return (
        Interval(value=None)
        if estimate is None
        else Interval(value=estimate.value, low=estimate.low, high=estimate.high)
    )
