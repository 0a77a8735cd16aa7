"""The ONNX file of a risk model computes what torch does, on rows with missing, far and hardly any values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from builders.networks import records_study

from wardround.errors import ModelError
from wardround.handover.equality import check_equality
from wardround.handover.onnx_export import export
from wardround.handover.onnx_model import onnx_model
from wardround.networks.build import initial_network
from wardround.study.load import Study
from wardround.tasks.early_warning.exported import exported, fixed_rows
from wardround.tasks.early_warning.hourly_gru import maximum_by_doubling, running_maximum
from wardround.tasks.early_warning.release import onnx_form

CASES = (  # network, vocabulary, hours
    ("severity-head", "icu", 6),
    ("tabular-head", "heart", 1),
    ("gru", "icu", 6),
)
SLOW_CASES = (("severity-head", "icu", 48), ("tabular-head", "icu", 1), ("gru", "icu", 48))


def study_of(name: str, vocabulary: str, hours: int) -> Study:
    init = "random" if (name, vocabulary) == ("tabular-head", "icu") else "phantom"
    return records_study(name, hours=hours, model={"init": init}, data=_data(vocabulary, hours))


def _data(vocabulary: str, hours: int) -> dict:
    return {"vocabulary": vocabulary, "window_hours": hours, "outcome": "died", "labels": ["survived", "died"]}


@pytest.mark.parametrize("case", [*CASES, *(pytest.param(one, marks=pytest.mark.slow) for one in SLOW_CASES)], ids=str)
def test_onnx_equals_torch(tmp_path: Path, case: tuple[str, str, int]) -> None:
    study = study_of(*case)
    network = initial_network(study)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():  # as after training: some heads start at zero
        network.head.weight.add_(torch.randn(network.head.weight.shape, generator=generator) * 0.05)
    released, threshold = exported(network, study)
    path = tmp_path / "model.onnx"
    export(released, study, path)
    found = check_equality(released, path.read_bytes(), study)
    assert found.rows == 60 and 0 <= found.largest <= 1e-5 and threshold is None
    assert [one.name for one in tmp_path.iterdir()] == ["model.onnx"]
    model, rows_NTV = onnx_model(path.read_bytes(), study), fixed_rows(study, 40)
    (logits,) = model.run(rows_NTV)
    hours = study.data.window_hours
    assert logits.shape == ((40, hours) if study.model.name == "gru" else (40, 1)) and logits.dtype == np.float32
    np.testing.assert_allclose(model.run(rows_NTV[17:18])[0][0], logits[17], rtol=1e-5, atol=1e-5)
    with pytest.raises(ModelError, match=rf"the model reads rows float32 \(N, {hours}, "):
        model.run(rows_NTV.astype(np.float64))
    with torch.no_grad():
        network.head.bias.add_(0.01)
    with pytest.raises(ModelError, match="differs from the network"):
        check_equality(released, path.read_bytes(), study)


def test_the_rows_of_the_comparison_hold_what_an_export_may_get_wrong() -> None:
    study = study_of("gru", "icu", 48)
    rows_NTV = fixed_rows(study, 60)
    missing_N = np.isnan(rows_NTV).mean((1, 2))
    assert rows_NTV.shape == (60, *study.data.row_shape) and rows_NTV.dtype == np.float32
    assert (missing_N == 1).sum() == 1 and (missing_N[45:] > 0.999).all() and missing_N[15:30].max() < 0.2
    assert np.array_equal(rows_NTV, fixed_rows(study, 60), equal_nan=True)


def test_the_form_names_every_column_with_its_unit() -> None:
    form = onnx_form(study_of("gru", "icu", 48))
    meanings = dict(form.columns)
    assert len(form.columns) == form.row_shape[1] and form.outputs == {"logits": (48,)}
    assert meanings["HR"] == "heart rate; /min" and meanings["Urine"] == "urine; mL; sum of the hour"
    assert meanings["Sex"].startswith("sex; 0 ") and meanings["MechVent"].endswith("in which it was recorded")


@pytest.mark.parametrize("hours", [1, 2, 5, 48])
def test_the_running_maximum_is_that_of_torch(hours: int) -> None:
    values_NTV = torch.randint(-1, hours, (3, hours, 4), generator=torch.Generator().manual_seed(1))
    assert torch.equal(maximum_by_doubling(values_NTV), values_NTV.cummax(1).values)
    assert torch.equal(running_maximum(values_NTV), values_NTV.cummax(1).values)
