"""The parts of a risk: exact for a head, complete for the recurrent network, and a refusal where little is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from builders.networks import records_study

from wardround.networks.build import initial_network
from wardround.phantoms.stays import stays
from wardround.sources.records.vocabulary import load_vocabulary
from wardround.tasks.early_warning.explanation import missing, risk_parts, too_little

ICU = load_vocabulary("icu")


def network(name: str) -> torch.nn.Module:
    return initial_network(records_study(name, hours=48, model={"init": "phantom"})).eval()


def test_the_parts_of_a_head_add_up_to_the_logit() -> None:
    severity = network("severity-head")
    for row_TV in stays(5, 1)[0]:
        found = risk_parts(severity, row_TV, ICU)
        assert found.method == "exact" and abs(found.error) < 1e-5
        assert found.rest + sum(one.part for one in found.parts) == pytest.approx(found.logit, abs=1e-5)


def test_integrated_gradients_add_up_to_the_difference_from_the_baseline() -> None:
    gru = network("gru")
    for row_TV in stays(3, 1)[0]:
        found = risk_parts(gru, row_TV, ICU)
        assert abs(found.error) < 0.02 * max(1.0, abs(found.logit - found.rest))
        assert {one.variable for one in found.parts} == set(ICU.names)


@pytest.mark.parametrize("name", ["severity-head", "gru"])
def test_a_worse_value_has_a_larger_part(name: str) -> None:
    row_TV, column = stays(1, 3)[0][0], ICU.index("GCS")
    parts = []
    for value in (15.0, 3.0):
        row_TV[:, column] = value
        found = risk_parts(network(name), row_TV, ICU)
        parts.append(next(one.part for one in found.parts if one.variable == "GCS"))
    assert parts[1] > parts[0] + 0.2


def test_a_part_says_what_was_measured() -> None:
    row_TV = np.full((48, len(ICU.variables)), np.nan, np.float32)
    row_TV[:3, ICU.index("Lactate")] = [2.0, np.nan, 4.5]
    row_TV[0, ICU.index("Sex")] = 1
    said = {one.variable: one.said for one in risk_parts(network("severity-head"), row_TV, ICU).parts}
    assert said["Lactate"] == "last 4.5 mmol/L, 2 to 4.5, 2 hours"
    assert said["Sex"] == "male" and said["HR"] == "not measured"


def test_too_little_is_refused_and_missing_variables_are_named() -> None:
    row_TV = np.full((48, len(ICU.variables)), np.nan, np.float32)
    row_TV[0, ICU.index("Age")] = 60
    for name in ("HR", "MAP", "Temp", "GCS", "Urine"):
        row_TV[0, ICU.index(name)] = 37
    assert too_little(row_TV, ICU) == "5 of 33 measurements are known, and the model needs 6"
    row_TV[0, ICU.index("Na")] = 140
    assert too_little(row_TV, ICU) is None
    assert "lactate" in missing(row_TV, ICU) and "heart rate" not in missing(row_TV, ICU)
    heart = load_vocabulary("heart")
    table_1V = np.full((1, len(heart.variables)), np.nan, np.float32)
    assert too_little(table_1V, heart) == "0 of 13 columns are known, and the model needs half of them"
