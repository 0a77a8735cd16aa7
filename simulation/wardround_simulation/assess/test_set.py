"""Whom a run is tested on: the patients that every hospital holds out, and those of --test-data. Exact figures, which
only a simulation can have without a release through a ledger.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn

from wardround.errors import DataError
from wardround.metrics.classification import auc_interval, summary
from wardround.study.load import Study
from wardround_client.site.site import Weights
from wardround_simulation.engine import in_process
from wardround_simulation.engine.in_process import Hospital
from wardround_simulation.report.evidence import CurvePoint, ScoredSet, Setting


class HeldOut:
    """The held-out patients of all hospitals."""

    def __init__(self, hospitals: list[Hospital], study: Study) -> None:
        parts = []
        offset = 0
        for hospital in hospitals:
            rows_N = hospital.rows_of_patients(hospital.cohort.holdout_rank_P < study.evaluation.holdout)
            parts.append((hospital, np.flatnonzero(rows_N), offset))
            offset += hospital.cohort.patient_count
        self.inputs_N = np.concatenate([h.inputs_N[rows] for h, rows, _ in parts])
        self.labels_N = np.concatenate([h.cohort.labels_N[rows] for h, rows, _ in parts]).astype(np.int64)
        self.patients_N = np.concatenate([h.cohort.patient_N[rows] + offset for h, rows, offset in parts])
        self.sites_N = np.concatenate([np.full(len(rows), h.name) for h, rows, _ in parts])
        if not len(self.labels_N):
            raise DataError("no patient is held out for testing; raise evaluation.holdout, or give more patients")

    def scored(
        self, setting: Setting, site: str | None, network: nn.Module, study: Study, weights: Weights
    ) -> ScoredSet:
        return ScoredSet(
            setting=setting,
            site=site,
            scores_N=in_process.score(network, study, weights, self.inputs_N),
            labels_N=self.labels_N,
            patients_N=self.patients_N,
            sites_N=self.sites_N,
        )

    def curve_point(self, round_: int, network: nn.Module, study: Study, weights: Weights) -> CurvePoint:
        scores = in_process.score(network, study, weights, self.inputs_N)
        if scores.ndim == 2:
            figures = summary(scores, self.labels_N, self.patients_N, "slice")
            return CurvePoint(round=round_, auc=figures.auc)
        estimate = auc_interval(scores, self.labels_N, self.patients_N)
        if estimate is None:
            return CurvePoint(round=round_, auc=None)
        return CurvePoint(round=round_, auc=estimate.value, auc_low=estimate.low, auc_high=estimate.high)


class OtherPatients:
    """All labelled images of other patients, given with --test-data."""

    def __init__(self, hospitals: list[Hospital], study: Study) -> None:
        self._hospitals = hospitals
        if not any(hospital.labelled_N.any() for hospital in hospitals):
            raise DataError("the test data have no labelled image of this study; check their labels")

    def figures(self, network: nn.Module, study: Study, weights: Weights) -> dict[str, Any]:
        rows = [hospital.labelled_N for hospital in self._hospitals]
        offsets = np.cumsum([0] + [hospital.cohort.patient_count for hospital in self._hospitals])
        inputs_N = np.concatenate([h.inputs_N[r] for h, r in zip(self._hospitals, rows, strict=True)])
        labels_N = np.concatenate([h.cohort.labels_N[r] for h, r in zip(self._hospitals, rows, strict=True)]).astype(
            np.int64
        )
        patients = [h.cohort.patient_N[r] + o for h, r, o in zip(self._hospitals, rows, offsets, strict=False)]
        scores = in_process.score(network, study, weights, inputs_N)
        return summary(scores, labels_N, np.concatenate(patients), "slice").to_json()
