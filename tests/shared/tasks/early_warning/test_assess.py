"""The assessment of early warning: figures against counts by hand, and a risk that grows with the hours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from builders.networks import records_study

from wardround.metrics.alarms import average_precision
from wardround.metrics.noised_auc import ScoreHistogram
from wardround.networks.build import initial_network, start_weights
from wardround.phantoms.stays import stays
from wardround.sources.records.vocabulary import load_vocabulary
from wardround.tasks.assessment import AtEnd, SiteData
from wardround.tasks.early_warning.assess import assessment_of, settings_rows
from wardround.tasks.early_warning.intercepts import calibrated_scores, from_histogram
from wardround.tasks.early_warning.risk import facts_of, risk_by_hour, rows_up_to
from wardround.tasks.labelled.scores import score

ICU = load_vocabulary("icu")


def study(name: str = "severity-head"):
    return records_study(name, hours=48, model={"init": "phantom"})


def site(name: str, seed: int) -> SiteData:
    rows_NTV, died_N = stays(120, seed)
    with torch.no_grad():
        features_ND = initial_network(study()).features(torch.from_numpy(rows_NTV)).numpy()
    held_out_N = np.arange(120) % 2 == 0
    return SiteData(
        name=name, values_N=rows_NTV, inputs_N=features_ND, labels_N=died_N.astype(np.int16),
        patient_N=np.arange(120), patients=120, training_N=~held_out_N, held_out_N=held_out_N,
    )  # fmt: skip


def test_the_assessment_counts_alarms_and_shows_calibration_and_hours(tmp_path: Path) -> None:
    sites = [site("east", 1), site("west", 2)]
    assessment = assessment_of(study(), sites, tmp_path, trainer=None)  # no baselines: nobody trains
    weights = start_weights(study())
    end = AtEnd(weights=weights, released=None, others=[], baselines=False, show_images=True, stage=lambda _: None)
    assessed = assessment.at_end(end)
    scores_N, labels_N = assessed.predictions[0].scores_N, assessed.predictions[0].labels_N
    found = assessed.result["early_warning"]
    assert found["auprc"] == average_precision(scores_N, labels_N)
    assert found["mean_risk"] == pytest.approx(scores_N.mean()) and set(found["sites"]) == {"east", "west"}
    at_least = found["alarms"][2]
    assert at_least["sensitivity"] == 0.8
    alarms_N = scores_N >= at_least["threshold"]
    assert alarms_N[labels_N == 1].mean() >= 0.8
    assert at_least["alarms_per_event"] == pytest.approx(alarms_N.sum() / (alarms_N & (labels_N == 1)).sum())
    assert [one.anchor for one in assessed.sections] == ["alarms", "calibration", "hours"]
    assert len(assessed.sections[2].tables[0].columns) == 7


def test_without_permission_no_stay_is_shown(tmp_path: Path) -> None:
    assessment = assessment_of(study(), [site("east", 1)], tmp_path, trainer=None)
    end = AtEnd(
        weights=start_weights(study()), released=None, others=[], baselines=False, show_images=False,
        stage=lambda _: None,
    )  # fmt: skip
    assert [one.anchor for one in assessment.at_end(end).sections] == ["alarms", "calibration"]


def test_what_is_known_after_some_hours_holds_nothing_later() -> None:
    rows_NTV = torch.from_numpy(stays(3, 1)[0])
    known_NTV = rows_up_to(rows_NTV, 10, facts_of(ICU))
    changed_NTV = rows_NTV.clone()
    changed_NTV[:, 10:] = torch.nan
    assert torch.equal(known_NTV.nan_to_num(), rows_up_to(changed_NTV, 10, facts_of(ICU)).nan_to_num())
    assert torch.equal(known_NTV[:, 0, facts_of(ICU)].nan_to_num(), rows_NTV[:, 0, facts_of(ICU)].nan_to_num())
    whole = rows_up_to(rows_NTV, 48, facts_of(ICU))
    assert torch.equal(whole.nan_to_num(), rows_NTV.nan_to_num())


@pytest.mark.parametrize("name", ["severity-head", "gru"])
def test_the_risk_after_the_last_hour_is_that_of_the_whole_row(name: str) -> None:
    network, rows_NTV = initial_network(study(name)).eval(), torch.from_numpy(stays(4, 1)[0])
    with torch.no_grad():
        right_N = network(rows_NTV)[:, -1]
    assert torch.allclose(risk_by_hour(network, rows_NTV, (6, 48), ICU)[:, 1], right_N, atol=1e-5)


def test_the_score_of_a_recurrent_network_is_its_risk_after_the_last_hour() -> None:
    rows_NTV = stays(5, 1)[0]
    network = initial_network(study("gru")).eval()
    with torch.no_grad():
        right_N = network(torch.from_numpy(rows_NTV))[:, -1].sigmoid().numpy()
    scores_N = score(initial_network(study("gru")), study("gru"), start_weights(study("gru")), rows_NTV)
    assert scores_N.shape == (5,) and np.allclose(scores_N, right_N, atol=1e-5)


def counts(positives: int, negatives: int, noise_variance: float = 0.0) -> ScoreHistogram:
    """Patients who all have a score near a risk of one half."""
    counts_2B = np.zeros((2, 16), dtype=np.int64)
    counts_2B[:, 8] = negatives, positives
    return ScoreHistogram(counts_2B=counts_2B, noise_variance=noise_variance, logit_scale=2.0)


def test_each_site_s_calibration_is_shown_before_and_after_the_intercept_of_its_own_counts(tmp_path: Path) -> None:
    releasing = records_study("severity-head", hours=48, model={"init": "phantom"}, evaluation={"epsilon": 3.0})
    assessment = assessment_of(releasing, [site("east", 1), site("west", 2)], tmp_path, trainer=None)
    end = AtEnd(
        weights=start_weights(study()), released=None, others=[], baselines=False, show_images=False,
        stage=lambda _: None, site_counts={"east": counts(75, 25), "west": counts(3, 4, noise_variance=9.0)},
    )  # fmt: skip
    assessed = assessment.at_end(end)
    found = assessed.result["early_warning"]["sites"]
    east, west = found["east"], found["west"]
    assert east["intercept"] == pytest.approx(from_histogram(counts(75, 25))) and east["intercept"] > 0.5
    scored = assessed.predictions[0]
    scores_N = scored.scores_N[scored.sites_N == "east"]
    assert east["mean_risk_with_intercept"] == pytest.approx(calibrated_scores(scores_N, east["intercept"]).mean())
    assert east["mean_risk"] == pytest.approx(scores_N.mean()) and east["ece_with_intercept"] != east["ece"]
    assert west["intercept"] is None and west["ece_with_intercept"] is None  # the noise hides the counts
    section = next(one for one in assessed.sections if one.anchor == "calibration")
    assert "noised with epsilon = 3, charged to its ledger once" in section.lines[1]
    assert [row[0] for row in section.tables[0].rows] == ["east", "west"] and section.tables[0].rows[1][-1] == "–"


class KnownTrainer:
    """Trains nothing: the start's weights, and exact counts of the scores that it is given."""

    def __init__(self) -> None:
        self.counted: list[int] = []

    def federated(self, study, sites):
        return start_weights(study)

    def noised_counts(self, study, scores_P, positive_P):
        self.counted.append(len(scores_P))
        return counts(int(positive_P.sum()), int((~positive_P).sum()))


def test_a_comparison_measures_accuracy_at_each_site_after_its_own_intercept() -> None:
    sites, trainer = [site("east", 1), site("west", 2)], KnownTrainer()
    releasing = records_study("severity-head", hours=48, model={"init": "phantom"}, evaluation={"epsilon": 3.0})
    (row,) = settings_rows(releasing, sites, [], ("federated",), trainer)
    assert trainer.counted == [60, 60], "the training patients of each site, who are not tested"
    for one in sites:
        scores_N = score(initial_network(releasing), releasing, start_weights(releasing), one.inputs_N)
        dead_N = one.labels_N[one.training_N] == 1
        shift = from_histogram(counts(int(dead_N.sum()), int((~dead_N).sum())))
        said_N = calibrated_scores(scores_N[one.held_out_N], shift) >= 0.5
        right = (said_N == (one.labels_N[one.held_out_N] == 1)).mean()
        assert row["sites"][one.name]["accuracy"] == pytest.approx(right)
    trainer.counted.clear()
    (row,) = settings_rows(study(), sites, [], ("federated",), trainer)
    assert not trainer.counted, "without a budget for figures there is no intercept"
    scores_N = score(initial_network(study()), study(), start_weights(study()), sites[0].inputs_N)
    held_out_N = sites[0].held_out_N
    plain = ((scores_N[held_out_N] >= 0.5) == (sites[0].labels_N[held_out_N] == 1)).mean()
    assert row["sites"]["east"]["accuracy"] == pytest.approx(plain)
