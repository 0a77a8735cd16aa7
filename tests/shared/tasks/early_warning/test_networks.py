"""The networks of early warning: public features, their start, and that a stay's output depends on that stay alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from builders.networks import records_study

from wardround.errors import StudyError
from wardround.networks.build import initial_network
from wardround.networks.fingerprint import architecture_sha256
from wardround.sources.records.study import records_data
from wardround.sources.records.synthetic_rows import synthetic_rows
from wardround.sources.records.vocabulary import load_vocabulary
from wardround.tasks.early_warning.features.scaling import FARTHEST, ClinicalScale
from wardround.tasks.early_warning.features.severity import SeverityScore
from wardround.tasks.early_warning.features.summaries import StaySummaries, stay_statistics
from wardround.tasks.early_warning.objective import mean_over_hours

ICU = load_vocabulary("icu")


def row(hours: int = 6, **values: list[float]) -> torch.Tensor:
    """One stay (1, T, V) with the given values from hour 0 on."""
    rows_NTV = torch.full((1, hours, len(ICU.variables)), torch.nan)
    for name, series in values.items():
        rows_NTV[0, : len(series), ICU.index(name)] = torch.tensor(series)
    return rows_NTV


def network(name: str, **sections: dict) -> torch.nn.Module:
    init = {"init": "random" if name == "gru" else "phantom", "trainable": "all" if name == "gru" else "head"}
    torch.manual_seed(0)
    return initial_network(records_study(name, model={"name": name, **init}, **sections)).eval()


def stays(count: int) -> torch.Tensor:
    return synthetic_rows(records_data(records_study("gru")), count)


def test_rows_are_scaled_as_the_vocabulary_says_and_cut():
    rows_NTV = stays(20)
    scaled, right = ClinicalScale(ICU)(rows_NTV).numpy(), ICU.scaled(rows_NTV.numpy())
    assert np.array_equal(np.isnan(scaled), np.isnan(right))
    assert np.allclose(scaled, np.clip(right, -FARTHEST, FARTHEST), atol=1e-5, equal_nan=True)


def test_statistics_of_a_variable_are_those_of_its_measured_hours():
    scale = ClinicalScale(ICU)
    found, column = stay_statistics(scale(row(HR=[85, torch.nan, 105, 95, torch.nan]))), ICU.index("HR")
    numbers = [getattr(found, name)[0, column].item() for name in ("last", "mean", "lowest", "highest", "count")]
    assert numbers == pytest.approx([0.5, 0.5, 0, 1, 3], abs=1e-6)
    assert found.recent[0, column].item() == pytest.approx(np.exp(-2 / 12))  # the last of 6 hours is hour 5
    assert found.last[0, ICU.index("Lactate")] == 0 and found.count[0, ICU.index("Lactate")] == 0


def test_every_feature_has_a_name_and_a_missing_variable_moves_none_of_the_score():
    features = network("severity-head").public
    assert features(row()).shape == (1, len(features.parts))
    assert torch.count_nonzero(features(row())[0, :80]) == 0
    assert len(features.severity.parts) == 80


@pytest.mark.parametrize("values", [{"Lactate": [8.0]}, {"GCS": [3.0]}, {"MAP": [45.0]}, {"Age": [90.0]}])
def test_a_sign_of_severity_raises_the_public_score(values: dict[str, list[float]]):
    severity = network("severity-head")
    well = {"Age": [50.0], "GCS": [15.0], "MAP": [85.0]}
    assert severity(row(**(well | values))) > severity(row(**well)) + 0.1


def test_the_public_start_is_not_the_random_one_and_each_has_its_fingerprint():
    def built(init: str) -> torch.nn.Module:
        return initial_network(records_study("severity-head", model={"init": init, "trainable": "head"}))

    public, zero = built("phantom"), built("random")
    assert torch.count_nonzero(zero.head.weight) == 0 and torch.count_nonzero(public.head.weight) > 60
    assert architecture_sha256(public) != architecture_sha256(zero)


def test_changed_limits_change_the_fingerprint(monkeypatch):
    from wardround.tasks.early_warning.features import severity

    before = architecture_sha256(network("severity-head"))
    monkeypatch.setitem(severity.HIGH, "HR", 0.8)
    assert architecture_sha256(network("severity-head")) != before


@pytest.mark.parametrize("name", ["severity-head", "gru"])
def test_a_stay_s_features_and_logits_are_the_same_whoever_else_is_in_the_batch(name: str):
    one, rows_NTV = network(name), stays(9)
    with torch.no_grad():
        together, alone = one(rows_NTV), torch.cat([one(row[None]) for row in rows_NTV])
        others = one(torch.cat([rows_NTV[:1], rows_NTV.flip(0)[:8]]))
    assert torch.allclose(together, alone, atol=1e-5) and torch.equal(together[0], others[0])


def test_the_risk_at_an_hour_uses_nothing_that_came_later():
    gru, rows_NTV = network("gru"), stays(4)
    later = rows_NTV.clone()
    later[:, 3:] = stays(8)[4:, 3:]
    with torch.no_grad():
        before, after = gru(rows_NTV), gru(later)
    assert torch.equal(before[:, :3], after[:, :3]) and not torch.equal(before[:, 3:], after[:, 3:])


def test_the_recurrent_network_is_torch_s():
    gru, rows_NTV = network("gru"), stays(5)
    right = torch.nn.GRU(gru.prepare.hour_width, gru.units, batch_first=True)
    with torch.no_grad():
        for name, layer in (("ih", gru.inputs), ("hh", gru.hidden)):
            getattr(right, f"weight_{name}_l0").copy_(layer.weight)
            getattr(right, f"bias_{name}_l0").copy_(layer.bias)
        hours_NTD, _ = gru.prepare(rows_NTV)
        assert torch.allclose(gru.states(gru.inputs(hours_NTD)), right(hours_NTD)[0], atol=1e-6)


def test_a_patient_s_loss_is_the_mean_over_the_hours():
    logits_NT, labels_N = torch.tensor([[0.0, 2.0], [1.0, -1.0]]), torch.tensor([1, 0])
    loss = torch.nn.functional.binary_cross_entropy_with_logits
    right = [loss(logits_NT[n], torch.full((2,), float(labels_N[n]))) for n in range(2)]
    assert torch.allclose(mean_over_hours(logits_NT, labels_N), torch.stack(right))


def test_severity_parts_and_summaries_do_not_share_a_scale_with_the_data():
    """The features of one stay need no other stay: those of a batch of one are finite, with everything missing."""
    for features in (SeverityScore(ICU), StaySummaries(ICU, share=1.0, category_share=1.0)):
        found = stay_statistics(ClinicalScale(ICU)(row()))
        assert features.of_statistics(found, row()).isfinite().all()


@pytest.mark.parametrize(
    "sections, says",
    [
        ({"model": {"name": "severity-head", "trainable": "all"}}, "model.trainable: severity-head trains its head"),
        ({"model": {"trainable": "norm+head"}}, "model.trainable: gru has no normalisation"),
        ({"data": {"window_hours": 1}}, "data.window_hours: gru reads hours"),
        ({"model": {"name": "tabular-head", "trainable": "head"}}, "data.window_hours: tabular-head reads tables"),
        ({"training": {"augmentation": "flips"}}, "training.augmentation: there is none for records"),
    ],
)
def test_a_study_whose_network_does_not_fit_is_refused_in_one_line(sections: dict, says: str):
    with pytest.raises(StudyError, match=says.replace("+", r"\+")):
        records_study("gru", **sections)


def test_a_code_that_a_vocabulary_gains_leaves_the_fingerprint_and_a_constant_changes_it():
    from dataclasses import replace

    from wardround.tasks.early_warning.features.scaling import constants_sha256

    first, *others = ICU.variables

    def hash_with(**changes: object) -> str:
        return constants_sha256(replace(ICU, variables=(replace(first, **changes), *others)))

    assert hash_with(loinc=("1-1",)) == constants_sha256(ICU) != hash_with(centre=first.centre + 1)
