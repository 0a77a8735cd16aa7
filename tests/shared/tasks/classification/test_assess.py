"""The assessment of a classification: `auc_by_model` holds each model's AUC on the patients whom the site holds out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from wardround.metrics import classification
from wardround.networks.build import initial_network, start_weights
from wardround.study.load import Study, parse_study
from wardround.tasks.assessment import AtEnd, SiteData, Weights
from wardround.tasks.classification.assess import assessment_of
from wardround.tasks.labelled.scores import score

FEATURES, PATIENTS = 33, 24


def study() -> Study:
    return parse_study({
        "study": {"name": "models", "rounds": 1},
        "data": {"labels": ["benign", "malignant"], "image_size": 64},
        "privacy": {"epsilon": 8, "delta": 1e-4, "max_grad_norm": 0.3, "nominal_patients": 12},
        "aggregation": {"nominal_sites": 3},
    })  # fmt: skip


def site(name: str, seed: int, one_label: bool = False) -> SiteData:
    """A site with two rows of features a patient; every second patient is held out."""
    generator = np.random.default_rng(seed)
    patient_N = np.repeat(np.arange(PATIENTS), 2)
    labels_N = np.ones(2 * PATIENTS, np.int16) if one_label else (patient_N // 2 % 2).astype(np.int16)
    inputs_N = generator.normal(size=(2 * PATIENTS, FEATURES)).astype(np.float32) * 0.3
    inputs_N[:, 1] += labels_N  # what a trained head can use, and the start does not
    return SiteData(
        name=name, values_N=inputs_N, inputs_N=inputs_N, labels_N=labels_N, patient_N=patient_N, patients=PATIENTS,
        training_N=patient_N % 2 == 0, held_out_N=patient_N % 2 == 1,
    )  # fmt: skip


SITES = [site("east", 1), site("north", 2), site("west", 3, one_label=True)]


def trained(weight: float) -> Weights:
    """The start with this weight on the feature that tells the labels apart."""
    weights = {name: array.copy() for name, array in start_weights(study()).items()}
    weights["head.weight"][0, 1] = weight
    return weights


class FixedTrainer:
    """Weights without training, different for each model."""

    def federated(self, study: Study, sites: object) -> Weights:
        return trained(1.0)

    def alone(self, study: Study, site: SiteData) -> Weights:
        return trained({"east": -1.0, "north": 0.5, "west": 0.2}[site.name])

    def pooled(self, study: Study, sites: object) -> Weights:
        return trained(2.0)


def auc_by_model(place: Path, baselines: bool) -> dict:
    end = AtEnd(
        weights=trained(1.0), released=None, others=(), baselines=baselines, show_images=False, stage=lambda _: None
    )
    assessment = assessment_of(study(), SITES, place, FixedTrainer())
    return dict(assessment.at_end(end).result["auc_by_model"])


def test_every_model_is_tested_at_every_site_and_a_sites_own_only_there(tmp_path: Path) -> None:
    network, found = initial_network(study()), auc_by_model(tmp_path, baselines=True)
    weights = {"start": start_weights(study()), "federated": trained(1.0), "pooled": trained(2.0)}
    for one, alone in ((SITES[0], -1.0), (SITES[1], 0.5)):
        rows_N = one.held_out_N
        for setting, own in {**weights, "alone": trained(alone)}.items():
            scores_N = score(network, study(), own, np.asarray(one.inputs_N[rows_N]))
            expected = classification.auc_interval(scores_N, one.labels_N[rows_N], one.patient_N[rows_N])
            assert expected is not None
            assert found["sites"][one.name][setting]["auc"] == pytest.approx(expected.value, abs=1e-4)
            low, high = found["sites"][one.name][setting]["auc_ci95"]
            assert low <= found["sites"][one.name][setting]["auc"] <= high
    assert set(found["all"]) == set(weights)
    assert found["sites"]["east"]["alone"]["auc"] < found["sites"]["east"]["federated"]["auc"]


def test_a_site_with_one_label_has_no_auc_and_a_run_without_baselines_has_two_models(tmp_path: Path) -> None:
    found = auc_by_model(tmp_path, baselines=False)
    assert set(found["all"]) == {"start", "federated"}
    assert all(figures == {"auc": None, "auc_ci95": None} for figures in found["sites"]["west"].values())
