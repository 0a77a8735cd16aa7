"""How well a run's model tells labels apart: on the held-out patients, beside its start and other models.

Exact figures, which only a simulation can have without a release through a ledger. Shapes: N rows, K labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from wardround.errors import DataError
from wardround.metrics.classification import Unit, auc_interval, summary
from wardround.networks.build import initial_network, start_weights
from wardround.study.load import Study
from wardround.tasks.assessment import (
    Assessed,
    AtEnd,
    CurvePoint,
    ScoredSet,
    Setting,
    SiteData,
    Trainer,
    Weights,
    patient_offsets,
)
from wardround.tasks.labelled.scores import score
from wardround.tasks.round_notes import append_note, read_notes

CURVE_FILE = "curve.jsonl"


class HeldOut:
    """The held-out rows of all sites; figures are by `unit`."""

    def __init__(self, sites: Sequence[SiteData], unit: Unit) -> None:
        self.unit = unit
        rows = [np.flatnonzero(site.held_out_N) for site in sites]
        parts = list(zip(sites, rows, patient_offsets(sites), strict=True))
        self.inputs_N = np.concatenate([site.inputs_N[rows] for site, rows, _ in parts])
        self.labels_N = np.concatenate([site.labels_N[rows] for site, rows, _ in parts]).astype(np.int64)
        self.patients_N = np.concatenate([site.patient_N[rows] + offset for site, rows, offset in parts])
        self.sites_N = np.concatenate([np.full(len(rows), site.name) for site, rows, _ in parts])

    def scored(
        self, setting: Setting, site: str | None, network: nn.Module, study: Study, weights: Weights
    ) -> ScoredSet:
        """The scores of one model; `site` is where it was trained, for the setting `alone`."""
        return ScoredSet(
            setting=setting,
            site=site,
            scores_N=score(network, study, weights, self.inputs_N),
            labels_N=self.labels_N,
            patients_N=self.patients_N,
            sites_N=self.sites_N,
        )

    def figures(self, network: nn.Module, study: Study, weights: Weights) -> dict[str, Any]:
        """The figures of one model."""
        return summary(
            score(network, study, weights, self.inputs_N), self.labels_N, self.patients_N, self.unit
        ).to_json()

    def curve_point(self, round_: int, network: nn.Module, study: Study, weights: Weights) -> CurvePoint:
        """The AUC after a round, with its interval for two labels."""
        scores = score(network, study, weights, self.inputs_N)
        if scores.ndim == 2:
            figures = summary(scores, self.labels_N, self.patients_N, self.unit)
            return CurvePoint(round=round_, auc=figures.auc)
        estimate = auc_interval(scores, self.labels_N, self.patients_N)
        if estimate is None:
            return CurvePoint(round=round_, auc=None)
        return CurvePoint(round=round_, auc=estimate.value, auc_low=estimate.low, auc_high=estimate.high)


class LabelAssessment:
    """AUC round by round, and at the end against the start, every hospital alone and all data in one place.

    Raises:
        DataError: nobody is held out to test on.
    """

    def __init__(self, study: Study, sites: Sequence[SiteData], out: Path, trainer: Trainer, unit: Unit) -> None:
        self._study, self._sites, self._out, self._trainer = study, list(sites), out, trainer
        self._network, self._start = initial_network(study), start_weights(study)
        self._test = HeldOut(self._sites, unit)
        if not len(self._test.labels_N):
            raise DataError("no patient is held out for testing; raise evaluation.holdout, or give more patients")
        self._curve = {
            round_: CurvePoint(round=round_, **note) for round_, note in read_notes(out / CURVE_FILE).items()
        }

    def after_round(self, round_: int, weights: Weights) -> str:
        point = self._test.curve_point(round_, self._network, self._study, weights)
        self._curve[round_] = point
        if round_:
            note = {"auc": point.auc, "auc_low": point.auc_low, "auc_high": point.auc_high}
            append_note(self._out / CURVE_FILE, round_, note)
        return "" if point.auc is None else f"AUC {point.auc:.3f}"

    def at_end(self, end: AtEnd) -> Assessed:
        study, test, network = self._study, self._test, self._network
        federated = test.scored("federated", None, network, study, end.weights)
        predictions = [federated, test.scored("start", None, network, study, self._start)]
        if end.baselines:
            end.stage("Training the baselines: every hospital alone, and all data in one place")
            predictions += self._train_baselines()
        result: dict[str, Any] = {
            "test": summary(federated.scores_N, test.labels_N, test.patients_N, test.unit).to_json(),
            "test_by_patient": patient_figures(federated),
            "auc_by_model": self._auc_by_model(predictions),
        }
        if end.others:
            others = HeldOut(end.others, test.unit)
            if not len(others.labels_N):
                raise DataError("the test data have no labelled patient of this study; check their labels")
            result["external_test"] = others.figures(network, study, end.weights)
        return Assessed(
            weights=end.weights,
            result=result,
            site_tests={site.name: self._figures_at(site.name, federated) for site in self._sites},
            curve=[self._curve[round_] for round_ in sorted(self._curve)],
            predictions=predictions,
        )

    def _figures_at(self, site: str, scored: ScoredSet) -> dict[str, Any] | None:
        rows_N = self._test.sites_N == site
        if not rows_N.any():
            return None
        labels_N, patients_N = self._test.labels_N[rows_N], self._test.patients_N[rows_N]
        return summary(scored.scores_N[rows_N], labels_N, patients_N, self._test.unit).to_json()

    def _auc_by_model(self, predictions: Sequence[ScoredSet]) -> dict[str, Any]:
        """The AUC of each model: on all held-out patients, and on those of each site, where its own model joins."""
        test = self._test
        shared = [scored for scored in predictions if scored.site is None]
        every: dict[str, Any] = {
            scored.setting: _area(summary(scored.scores_N, test.labels_N, test.patients_N, test.unit).to_json())
            for scored in shared
        }
        sites = {}
        for site in self._sites:
            own = [scored for scored in predictions if scored.site == site.name]
            sites[site.name] = {
                scored.setting: _area(self._figures_at(site.name, scored) or {}) for scored in shared + own
            }
        return {"all": every, "sites": sites}

    def _train_baselines(self) -> list[ScoredSet]:
        """The same epsilon and the same round functions, without Flower."""
        study, test, network = self._study, self._test, self._network
        scored = []
        for site in self._sites:
            weights = self._trainer.alone(study, site)
            scored.append(test.scored("alone", site.name, network, study, weights))
        weights = self._trainer.pooled(study, self._sites)
        return [*scored, test.scored("pooled", None, network, study, weights)]


def _area(figures: Mapping[str, Any]) -> dict[str, Any]:
    return {"auc": figures.get("auc"), "auc_ci95": figures.get("auc_ci95")}


def patient_figures(scored: ScoredSet) -> dict[str, Any] | None:
    """The figures by patient: a patient's score is the maximum over its images. None with more than two labels."""
    if scored.scores_N.ndim == 2:
        return None
    return summary(scored.scores_N, scored.labels_N, scored.patients_N, "patient").to_json()
