"""Simulated stays: reproducible, within what is possible, and sicker patients look sicker."""

from __future__ import annotations

import numpy as np
import torch

from wardround.metrics.classification import auc
from wardround.phantoms.stays import COURSES, stays
from wardround.sources.records.vocabulary import load_vocabulary
from wardround.tasks.early_warning.public_head import severity_head

ICU = load_vocabulary("icu")


def test_the_same_seed_gives_the_same_stays_and_another_seed_others():
    (one, died), (same, _), (other, _) = stays(20, 3), stays(20, 3), stays(20, 4)
    assert one.shape == (20, 48, len(ICU.variables)) and one.dtype == np.float32 and set(died) <= {0, 1}
    assert np.array_equal(one, same, equal_nan=True) and not np.array_equal(one, other, equal_nan=True)


def test_every_variable_is_simulated_within_its_range_and_facts_stand_in_hour_0():
    rows_NTV, _ = stays(1500, 1)
    for column, variable in enumerate(ICU.variables):
        values = rows_NTV[..., column][~np.isnan(rows_NTV[..., column])]
        assert len(values), variable.name
        if variable.kind == "category":
            assert set(values) == set(range(len(variable.categories)))
        else:
            assert (values >= np.float32(variable.lowest)).all() and (values <= np.float32(variable.highest)).all()
        if variable.of_the_stay:
            assert np.isnan(rows_NTV[:, 1:, column]).all()
    assert set(COURSES) == {one.name for one in ICU.variables if one.kind in ("series", "sum")}


def test_the_public_severity_score_foresees_simulated_deaths():
    rows_NTV, died_N = stays(1000, 2)
    with torch.no_grad():
        logits_N1 = severity_head(ICU, public_start=True)(torch.from_numpy(rows_NTV))
    area = auc(logits_N1.sigmoid().numpy()[:, 0], died_N)
    assert area is not None and area > 0.75
    assert 0.08 < died_N.mean() < 0.25
