"""`wardround-sim compare` of classifiers: one fold, tested by models trained on the other folds in each setting.

Shapes: N rows, K labels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import nn

from wardround.errors import DataError
from wardround.metrics.classification import Unit, accuracy, auc, macro_auc, patient_scores
from wardround.networks.build import initial_network, start_weights
from wardround.study.load import Study
from wardround.tasks.assessment import ComparisonRow, SiteData, Trainer, Weights, patient_offsets
from wardround.tasks.labelled.scores import score

OwnThreshold = Callable[[np.ndarray, np.ndarray], float]


def settings_rows(
    study: Study,
    sites: Sequence[SiteData],
    others: Sequence[SiteData],
    settings: Sequence[str],
    trainer: Trainer,
    units: Sequence[Unit],
    own_threshold: OwnThreshold | None = None,
) -> list[ComparisonRow]:
    """Train in each of the settings (federated, pooled, alone); rows by setting and unit of the figures.

    Args:
        own_threshold: Returns the probability from which a patient of a site counts as positive, from the scores and
            labels of this site's training rows. Each site's `accuracy` is then measured with it, for two labels.

    Raises:
        DataError: there is no labelled patient to test on.
    """
    network, start = initial_network(study), start_weights(study)
    test = _TestRows(sites, units)
    outside = _TestRows(others, units) if others else None
    at_start = test.figures(network, study, start)
    outside_start = outside.figures(network, study, start) if outside else None

    def thresholds(weights: Weights) -> dict[str, float]:
        if own_threshold is None:
            return {}
        found = {}
        for site in sites:
            scores_N = score(network, study, weights, site.inputs_N[site.training_N])
            found[site.name] = own_threshold(scores_N, site.labels_N[site.training_N])
        return found

    def rows(setting: str, weights: Weights, site: str | None = None) -> list[ComparisonRow]:
        figures = test.figures(network, study, weights, thresholds(weights))
        outside_figures = outside.figures(network, study, weights) if outside else None
        out = []
        for unit in units:
            row: ComparisonRow = {
                "setting": setting,
                **({"site": site} if site else {}),
                "unit": unit,
                **figures[unit]["all"],
            }
            row["start_auc"] = at_start[unit]["all"]["auc"]
            row["sites"] = {
                name: {**figures[unit]["sites"][name], "start_auc": at_start[unit]["sites"][name]["auc"]}
                for name in figures[unit]["sites"]
            }
            if outside_figures and outside_start:
                row["external_auc"] = outside_figures[unit]["all"]["auc"]
                row["external_start_auc"] = outside_start[unit]["all"]["auc"]
                row["external_patients"] = outside_figures[unit]["all"]["patients"]
            out.append(row)
        return out

    out = []
    if "federated" in settings:
        out += rows("federated", trainer.federated(study, sites))
    if "pooled" in settings:
        out += rows("pooled", trainer.pooled(study, sites))
    if "alone" in settings:
        for site in sites:
            out += rows("alone", trainer.alone(study, site), site.name)
    return out


class _TestRows:
    """The held-out rows of several sites, gathered once; `figures` scores a model on them."""

    def __init__(self, sites: Sequence[SiteData], units: Sequence[Unit]) -> None:
        self._units = units
        parts = list(zip(sites, patient_offsets(sites), strict=True))
        self._inputs_N = np.concatenate([site.inputs_N[site.held_out_N] for site in sites])
        self._labels_N = np.concatenate([site.labels_N[site.held_out_N] for site in sites])
        self._patients_N = np.concatenate([site.patient_N[site.held_out_N] + offset for site, offset in parts])
        self._sites_N = np.concatenate([np.full(int(site.held_out_N.sum()), site.name) for site in sites])
        self._sites = [site.name for site in sites]
        if not len(self._labels_N):
            raise DataError("no labelled patient to test on; check the folds and the labels")

    def figures(
        self, network: nn.Module, study: Study, weights: Weights, thresholds: Mapping[str, float] | None = None
    ) -> dict[str, dict[str, Any]]:
        """By unit: of all rows, and of each site's, whose accuracy is measured at its own threshold if it has one."""
        scores = score(network, study, weights, self._inputs_N)
        out: dict[str, dict[str, Any]] = {}
        for unit in self._units:
            whole = self._figure(unit, scores, np.ones(len(self._labels_N), bool))
            by_site = {
                site: self._figure(unit, scores, self._sites_N == site, (thresholds or {}).get(site))
                for site in self._sites
            }
            out[unit] = {"all": whole, "sites": by_site}
        return out

    def _figure(
        self, unit: str, scores: np.ndarray, rows_N: np.ndarray, threshold: float | None = None
    ) -> dict[str, Any]:
        labels_N, patients_N = self._labels_N[rows_N], self._patients_N[rows_N]
        patients = int(len(np.unique(patients_N)))
        if not patients:
            return {"auc": None, "patients": 0}
        if scores.ndim == 2:
            return {"auc": macro_auc(scores[rows_N], labels_N) if unit == "slice" else None, "patients": patients}
        scores_N = scores[rows_N]
        if unit == "patient":
            scores_N, labels_N, _ = patient_scores(scores_N, labels_N, patients_N)
        figures = {"auc": auc(scores_N, labels_N), "patients": patients}
        return figures if threshold is None else {**figures, "accuracy": accuracy(scores_N, labels_N, threshold)}
