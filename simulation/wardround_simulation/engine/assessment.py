"""What a simulation gives to a task's assessment: the data of its hospitals, and training in this process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from wardround.metrics.classification import logits
from wardround.metrics.noised_auc import ScoreHistogram, noise_variance
from wardround.study.load import Study
from wardround.tasks.assessment import SiteData, Weights
from wardround_client.privacy.score_noise import noised, score_histogram
from wardround_client.privacy.secure_random import SecretRandom
from wardround_client.training.rows import training_rows, usable_rows
from wardround_simulation.engine.in_process import (
    Hospital,
    alone_study,
    pooled_study,
    temporary_site,
    train_together,
)


def sites_of(study: Study, hospitals: Sequence[Hospital]) -> list[SiteData]:
    """The hospitals of a run: tested on the patients whom the study holds out, trained on all others."""
    sites = []
    for hospital in hospitals:
        usable_N, training_N = usable_rows(study, hospital.cohort), training_rows(study, hospital.cohort)
        sites.append(_site_data(hospital, training_N, usable_N & ~training_N))
    return sites


def other_sites(study: Study, hospitals: Sequence[Hospital]) -> list[SiteData]:
    """Hospitals of other patients, who are all tested on."""
    sites = []
    for hospital in hospitals:
        usable_N = usable_rows(study, hospital.cohort)
        sites.append(_site_data(hospital, np.zeros_like(usable_N), usable_N))
    return sites


def sites_of_fold(study: Study, hospitals: Sequence[Hospital], fold_of: Mapping[str, int], fold: int) -> list[SiteData]:
    """Hospitals tested on one fold and trained on the others. `fold_of`: by pseudonym; patients without one are left
    out.
    """
    sites = []
    for hospital in hospitals:
        cohort, usable_N = hospital.cohort, usable_rows(study, hospital.cohort)
        fold_N = np.array([fold_of.get(name, -1) for name in cohort.pseudonyms])[cohort.patient_N]
        sites.append(_site_data(hospital, usable_N & (fold_N >= 0) & (fold_N != fold), usable_N & (fold_N == fold)))
    return sites


def _site_data(hospital: Hospital, training_N: np.ndarray, held_out_N: np.ndarray) -> SiteData:
    cohort = hospital.cohort
    return SiteData(
        name=hospital.name,
        values_N=cohort.values_N,
        inputs_N=hospital.inputs_N,
        labels_N=cohort.labels_N,
        patient_N=cohort.patient_N,
        patients=cohort.patient_count,
        training_N=training_N,
        held_out_N=held_out_N,
    )


class InProcessTrainer:
    """`wardround.tasks.assessment.Trainer` over these hospitals, without Flower."""

    def __init__(self, hospitals: Sequence[Hospital]) -> None:
        self._hospital_of = {hospital.name: hospital for hospital in hospitals}
        self._admitted: dict[str, object] = {}

    def federated(self, study: Study, sites: Sequence[SiteData]) -> Weights:
        return self._trained(study, {site.name: [site] for site in sites})

    def alone(self, study: Study, site: SiteData) -> Weights:
        return self._trained(alone_study(study), {site.name: [site]})

    def pooled(self, study: Study, sites: Sequence[SiteData]) -> Weights:
        return self._trained(pooled_study(study), {"pooled": sites})

    def noised_counts(self, study: Study, scores_P: np.ndarray, positive_P: np.ndarray) -> ScoreHistogram:
        settings = study.evaluation
        counts_2B = score_histogram(logits(scores_P), positive_P, settings.bins, settings.logit_scale)
        return ScoreHistogram(
            counts_2B=noised(counts_2B, settings.epsilon, SecretRandom()),
            noise_variance=noise_variance(settings.epsilon),
            logit_scale=settings.logit_scale,
        )

    def _trained(self, study: Study, rows_at: Mapping[str, Sequence[SiteData]]) -> Weights:
        """`rows_at`: by site of the study, whose training rows it holds."""
        sites = []
        for name, parts in rows_at.items():
            rows = [(self._hospital_of[part.name], part.training_N) for part in parts]
            sites.append(temporary_site(study, name, rows, self._admitted))
        return train_together(study, sites)
