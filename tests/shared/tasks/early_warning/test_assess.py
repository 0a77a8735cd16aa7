"""The assessment of early warning: figures against counts by hand, and a risk that grows with the hours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from builders.networks import records_study

from wardround.metrics.alarms import average_precision
from wardround.networks.build import initial_network, start_weights
from wardround.phantoms.stays import stays
from wardround.sources.records.vocabulary import load_vocabulary
from wardround.tasks.assessment import AtEnd, SiteData
from wardround.tasks.early_warning.assess import assessment_of, own_shift
from wardround.tasks.early_warning.intercepts import calibrated_scores
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


def test_a_site_s_intercept_puts_the_level_of_risks_right_where_its_count_exceeds_the_noise() -> None:
    random = np.random.default_rng(2)
    risks_N = 1 / (1 + np.exp(-random.normal(-3, 1, 3000)))
    events_N = (random.random(3000) < calibrated_scores(risks_N, 1.2)).astype(np.int16)
    shift = own_shift(risks_N, events_N)
    assert shift == pytest.approx(1.2, abs=0.15)
    assert own_shift(risks_N[:40], events_N[:40]) is None
