"""How well a run's model tells labels apart: on the held-out patients, beside its start and other models."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wardround.metrics.classification import summary
from wardround.networks.build import initial_network
from wardround.study.load import Study
from wardround_client.site.site import Weights
from wardround_client.training.rows import training_rows
from wardround_simulation.assess.assessment import Assessed, AtEnd
from wardround_simulation.assess.test_set import HeldOut, OtherPatients
from wardround_simulation.engine import in_process
from wardround_simulation.engine.in_process import Hospital
from wardround_simulation.report.evidence import CurvePoint, ScoredSet


class ClassificationAssessment:
    """AUC round by round, and at the end against the start, every hospital alone and all data in one place."""

    def __init__(self, study: Study, hospitals: Sequence[Hospital], out: Path) -> None:
        self._study, self._hospitals, self._out = study, list(hospitals), out
        self._network, self._start = initial_network(study), in_process.start_weights(study)
        self._test = HeldOut(self._hospitals, study)
        self._curve = read_curve(out)

    def after_round(self, round_: int, weights: Weights) -> str:
        point = self._test.curve_point(round_, self._network, self._study, weights)
        self._curve[round_] = point
        if round_:
            append_curve(self._out, point)
        return "" if point.auc is None else f"AUC {point.auc:.3f}"

    def at_end(self, end: AtEnd) -> Assessed:
        study, test, network = self._study, self._test, self._network
        federated = test.scored("federated", None, network, study, end.weights)
        predictions = [federated, test.scored("start", None, network, study, self._start)]
        if end.baselines:
            end.stage("Training the baselines: every hospital alone, and all data in one place")
            predictions += self._train_baselines()
        result: dict[str, Any] = {
            "test": summary(federated.scores_N, test.labels_N, test.patients_N, "slice").to_json(),
            "test_by_patient": patient_figures(federated),
        }
        if end.others:
            result["external_test"] = OtherPatients(list(end.others), study).figures(network, study, end.weights)
        return Assessed(
            weights=end.weights,
            result=result,
            site_tests={hospital.name: self._figures_at(hospital.name, federated) for hospital in self._hospitals},
            curve=[self._curve[round_] for round_ in sorted(self._curve)],
            predictions=predictions,
        )

    def _figures_at(self, site: str, federated: ScoredSet) -> dict[str, Any] | None:
        rows_N = self._test.sites_N == site
        if not rows_N.any():
            return None
        labels_N, patients_N = self._test.labels_N[rows_N], self._test.patients_N[rows_N]
        return summary(federated.scores_N[rows_N], labels_N, patients_N, "slice").to_json()

    def _train_baselines(self) -> list[ScoredSet]:
        """The same epsilon and the same round functions, without Flower."""
        study, test, network = self._study, self._test, self._network
        parts = [(hospital, training_rows(study, hospital.cohort)) for hospital in self._hospitals]
        alone, scored = in_process.alone_study(study), []
        admitted: dict[str, object] = {}
        for hospital, rows_N in parts:
            site = in_process.temporary_site(alone, hospital.name, [(hospital, rows_N)], admitted)
            weights = in_process.train_together(alone, [site])
            scored.append(test.scored("alone", hospital.name, network, study, weights))
        pooled = in_process.pooled_study(study)
        weights = in_process.train_together(pooled, [in_process.temporary_site(pooled, "pooled", parts, {})])
        return [*scored, test.scored("pooled", None, network, study, weights)]


def patient_figures(scored: ScoredSet) -> dict[str, Any] | None:
    """The figures by patient: a patient's score is the maximum over its images. None with more than two labels."""
    if scored.scores_N.ndim == 2:
        return None
    return summary(scored.scores_N, scored.labels_N, scored.patients_N, "patient").to_json()


def read_curve(out: Path) -> dict[int, CurvePoint]:
    """The learning curve so far: one point a round, kept beside the checkpoints so that a resumed run has all of it."""
    path, points = out / "curve.jsonl", {}
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                continue  # cut short by a kill
            points[entry["round"]] = CurvePoint(**entry)
    return points


def append_curve(out: Path, point: CurvePoint) -> None:
    """One more line of curve.jsonl."""
    entry = {"round": point.round, "auc": point.auc, "auc_low": point.auc_low, "auc_high": point.auc_high}
    with (out / "curve.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")
