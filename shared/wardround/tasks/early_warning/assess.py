"""How well a run's model foresees the outcome: figures by patient, the burden of its alarms, and whether its risks are
true.

Shapes: N stays, T hours, V variables.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wardround.metrics.alarms import AlarmBurden, alarm_burdens, average_precision, burden_rows
from wardround.metrics.classification import Unit, expected_calibration_error, probabilities
from wardround.networks.build import initial_network
from wardround.networks.weights import load_weights, trained_parameters
from wardround.sources.records.study import records_data
from wardround.sources.records.vocabulary import load_vocabulary
from wardround.study.load import Study
from wardround.tasks.assessment import (
    Assessed,
    AtEnd,
    ComparisonRow,
    ReportSection,
    ReportTable,
    ScoredSet,
    Setting,
    SiteData,
    Trainer,
)
from wardround.tasks.early_warning.intercepts import calibrated_scores, from_histogram
from wardround.tasks.early_warning.risk import risk_by_hour
from wardround.tasks.labelled import comparison
from wardround.tasks.labelled.assessment import LabelAssessment

UNITS: tuple[Unit, ...] = ("patient",)
HOURS = (6, 12, 24, 36, 48)  # at which the risk of a few stays is shown
SHOWN_STAYS = 6


class EarlyWarningAssessment(LabelAssessment):
    """The assessment of a classifier, with AUPRC, alarm burden, calibration and the risk over the hours beside it."""

    def __init__(self, study: Study, sites: Sequence[SiteData], out: Path, trainer: Trainer) -> None:
        super().__init__(study, sites, out, trainer, UNITS[0])
        self._of_warning, self._all_sites = study, list(sites)

    def at_end(self, end: AtEnd) -> Assessed:
        assessed = super().at_end(end)
        shared = [scored for scored in assessed.predictions if scored.site is None]
        found = {scored.setting: warning_figures(scored) for scored in shared}
        federated = next(scored for scored in shared if scored.setting == "federated")
        there = set(federated.sites_N.tolist())
        shifts = {name: from_histogram(counts) for name, counts in end.site_counts.items()}
        sites = {name: calibration_at(name, federated, shifts.get(name)) for name in sorted(there)}
        epsilon = self._of_warning.evaluation.epsilon
        sections = [_alarm_section(found), _calibration_section(found["federated"], sites, epsilon)]
        if end.show_images:
            sections.append(self._hours_section(end))
        result = {**assessed.result, "early_warning": {**found["federated"], "sites": sites}}
        return replace(assessed, result=result, sections=[*assessed.sections, *sections])

    def _hours_section(self, end: AtEnd) -> ReportSection:
        """The risk of a few held-out stays hour by hour: of simulated ones, or because the person asked for it."""
        study, data = self._of_warning, records_data(self._of_warning)
        hours = [hour for hour in HOURS if hour < data.window_hours] + [data.window_hours]
        network = initial_network(study).eval()
        load_weights(trained_parameters(network, study), end.weights)
        rows_NTV, labels_N = _held_out_stays(self._all_sites)
        shown = [*np.flatnonzero(labels_N == 1)[: SHOWN_STAYS // 2], *np.flatnonzero(labels_N == 0)[: SHOWN_STAYS // 2]]
        logits_NH = risk_by_hour(network, torch.from_numpy(rows_NTV[shown]), hours, load_vocabulary(data.vocabulary))
        risks_NH = probabilities(logits_NH.numpy().reshape(-1)).reshape(len(shown), len(hours))
        table = ReportTable(
            caption=f"The risk of {data.labels[1]!r} of some held-out stays, from what had been measured by then",
            columns=["stay", "outcome", *(f"after {hour} h" for hour in hours)],
            rows=[
                [str(number), data.labels[labels_N[stay]], *(f"{risk:.0%}" for risk in risks_H)]
                for number, (stay, risks_H) in enumerate(zip(shown, risks_NH, strict=True), 1)
            ],
        )
        return ReportSection(anchor="hours", title="Risk over the hours", tables=[table])


def _held_out_stays(sites: Sequence[SiteData]) -> tuple[np.ndarray, np.ndarray]:
    rows = [site.values_N[np.flatnonzero(site.held_out_N)] for site in sites]
    return np.concatenate(rows), np.concatenate([site.labels_N[site.held_out_N] for site in sites])


def warning_figures(scored: ScoredSet) -> dict[str, Any]:
    """AUPRC, share of events, mean risk, calibration error and alarm burden of one model on the held-out patients."""
    scores_N, labels_N = scored.scores_N, scored.labels_N
    return {
        "auprc": average_precision(scores_N, labels_N),
        "events": int((labels_N == 1).sum()),
        "observed": float(labels_N.mean()),
        "mean_risk": float(scores_N.mean()),
        "ece": expected_calibration_error(scores_N, labels_N),
        "alarms": [burden.to_json() for burden in alarm_burdens(scores_N, labels_N)],
    }


def calibration_at(site: str, scored: ScoredSet, shift: float | None) -> dict[str, float | None]:
    """Mean risk and calibration error on one site's held-out patients, before and after its own intercept."""
    rows_N = scored.sites_N == site
    scores_N, labels_N = scored.scores_N[rows_N], scored.labels_N[rows_N]
    after_N = scores_N if shift is None else calibrated_scores(scores_N, shift)
    return {
        "observed": float(labels_N.mean()),
        "mean_risk": float(scores_N.mean()),
        "ece": expected_calibration_error(scores_N, labels_N),
        "intercept": shift,
        "mean_risk_with_intercept": None if shift is None else float(after_N.mean()),
        "ece_with_intercept": None if shift is None else expected_calibration_error(after_N, labels_N),
    }


def _alarm_section(found: Mapping[Setting, dict[str, Any]]) -> ReportSection:
    federated = found["federated"]
    areas = [[setting, _number(figures["auprc"])] for setting, figures in found.items()]
    tables = [
        ReportTable(caption="Area under precision and sensitivity (AUPRC)", columns=["model", "AUPRC"], rows=areas)
    ]
    burdens = [AlarmBurden(**one) for one in federated["alarms"]]
    if burdens:
        tables.append(
            ReportTable(
                caption="What a sensitivity costs, federated model",
                columns=["events found", "risk at or above", "alarms for each event found", "alarms of 100 patients"],
                rows=burden_rows(burdens),
            )
        )
    line = (
        f"{federated['events']} of the held-out patients had the event ({federated['observed']:.1%}): a useless score "
        "has this share as its AUPRC."
    )
    return ReportSection(anchor="alarms", title="Alarms", lines=[line], tables=tables)


def _calibration_section(
    federated: dict[str, Any], sites: Mapping[str, dict[str, float | None]], epsilon: float
) -> ReportSection:
    lines = [
        f"The mean risk is {federated['mean_risk']:.1%} where {federated['observed']:.1%} had the event; the "
        f"calibration error is {federated['ece']:.3f}. Clipping limits what patients with the event can add, so that "
        "risks come out too low under privacy; the order of the patients is not touched by it.",
        _about_intercepts(epsilon),
    ]
    rows = [
        [
            name,
            *(_percent(one[key]) for key in ("observed", "mean_risk", "mean_risk_with_intercept")),
            *(_number(one[key]) for key in ("ece", "ece_with_intercept")),
        ]
        for name, one in sites.items()
    ]
    table = ReportTable(
        caption="Before and after a site's own intercept",
        columns=["site", "observed", "mean risk", "mean risk after", "error", "error after"],
        rows=rows,
    )
    return ReportSection(anchor="calibration", title="Are the risks true?", lines=lines, tables=[table])


def _about_intercepts(epsilon: float) -> str:
    if epsilon == 0:
        return (
            "An intercept of the site's own would put the level right. It needs counts that a site releases, and this "
            "study has no budget for them (evaluation.epsilon = 0)."
        )
    noise = "exact counts, without privacy" if math.isinf(epsilon) else f"noised with epsilon = {epsilon:g}"
    return (
        "An intercept of the site's own puts the level right. It is computed from the counts of its held-out patients "
        f"that the site released for the figures ({noise}, charged to its ledger once), and costs no more. The same "
        "patients show here what it changes, so that the error after it is a little too good. Where the noise hides "
        "the number of events there is no intercept."
    )


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def assessment_of(study: Study, sites: Sequence[SiteData], out: Path, trainer: Trainer) -> EarlyWarningAssessment:
    """The assessment of a run. Raises `DataError` where nobody is held out to test on."""
    return EarlyWarningAssessment(study, sites, out, trainer)


def settings_rows(
    study: Study, sites: Sequence[SiteData], others: Sequence[SiteData], settings: Sequence[str], trainer: Trainer
) -> list[ComparisonRow]:
    """A fold of `compare`, with the accuracy at each site after its own intercept.

    A fold's patients are all tested, so the counts for the intercept are of the training patients instead, with the
    noise of `evaluation.epsilon`; without this budget there is no intercept.

    Raises:
        DataError: There is no labelled patient to test on.
    """

    def own_threshold(scores_N: np.ndarray, labels_N: np.ndarray) -> float:
        if study.evaluation.epsilon == 0:
            return 0.5
        shift = from_histogram(trainer.noised_counts(study, scores_N, labels_N == 1))
        return 0.5 if shift is None else float(probabilities([-shift])[0])

    return comparison.settings_rows(study, sites, others, settings, trainer, UNITS, own_threshold)
