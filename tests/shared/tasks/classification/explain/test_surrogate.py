"""The surrogate recovers a simple rule, states its fidelity on unseen patients, and refuses what it cannot learn."""

import numpy as np
import pytest

from wardround.errors import DataError
from wardround.tasks.classification.explain.named_outputs import OUTPUTS
from wardround.tasks.classification.explain.surrogate import DEEPEST, SMALLEST_LEAF, fit_surrogate

LABELS = ("benign", "malignant")


def rows(count=300, seed=0):
    generator = np.random.default_rng(seed)
    values_NK = generator.random((count, len(OUTPUTS)))
    values_NK[:, 0] = generator.uniform(3, 30, count)
    return values_NK, np.arange(count) // 2


def test_a_rule_is_recovered_in_words():
    values_NK, patient_N = rows()
    image_K = np.full(len(OUTPUTS), 0.5)
    image_K[0] = 25
    found = fit_surrogate(values_NK, (values_NK[:, 0] > 10).astype(int), patient_N, LABELS, 0.7, image_K)
    assert found.fidelity > 0.97 > found.by_majority
    assert found.fitted_patients == 100 and found.tested_patients == 50
    texts = {rule.decision: rule.conditions for rule in found.rules}
    assert texts["malignant"][0].startswith(("Diameter above 9.", "Diameter above 10."))
    assert texts["benign"][0].startswith("Diameter at most") and texts["benign"][0].endswith(" mm")
    assert found.applies in found.rules and found.applies.decision == "malignant"


def test_fidelity_is_measured_on_patients_that_the_tree_has_not_seen():
    """Decisions by chance cannot be reproduced, however well the tree fits its own rows."""
    values_NK, patient_N = rows()
    decisions_N = np.random.default_rng(5).integers(0, 2, len(values_NK))
    assert fit_surrogate(values_NK, decisions_N, patient_N, LABELS, 0.7).fidelity < 0.65


def test_rules_are_few_and_none_is_about_single_patients():
    values_NK, patient_N = rows()
    decisions_N = ((values_NK[:, 1] > 0.4) ^ (values_NK[:, 3] > 0.6) ^ (values_NK[:, 0] > 15)).astype(int)
    found = fit_surrogate(values_NK, decisions_N, patient_N, LABELS, 0.7)
    assert 1 < len(found.rules) <= 2**DEEPEST
    assert min(rule.rows for rule in found.rules) >= SMALLEST_LEAF
    assert max(len(rule.conditions) for rule in found.rules) <= DEEPEST
    assert sum(rule.rows for rule in found.rules) == 200


def test_too_few_patients_and_a_model_that_always_decides_the_same_are_refused():
    values_NK, patient_N = rows(40)
    with pytest.raises(DataError, match="needs 30 patients, and this site has 20"):
        fit_surrogate(values_NK, np.arange(40) % 2, patient_N, LABELS, 0.7)
    values_NK, patient_N = rows()
    with pytest.raises(DataError, match="decides the same for all rows"):
        fit_surrogate(values_NK, np.zeros(300, int), patient_N, LABELS, 0.7)
