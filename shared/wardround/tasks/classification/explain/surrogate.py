"""A shallow decision tree that imitates a model's decisions from the named outputs, at one site.

The tree is fitted to the site's own rows and to the model's decisions on them, not to the patients' labels. Its
fidelity is the share of the model's decisions that it reproduces on patients that it was not fitted to. It describes
patients of this site and stays there.

Shapes: N rows, K named outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.tree import DecisionTreeClassifier

from wardround.errors import DataError
from wardround.tasks.classification.explain.named_outputs import OUTPUTS, measure_text

DEEPEST = 3
SMALLEST_LEAF = 10  # rows; a rule about fewer would be about single patients
FEWEST_PATIENTS = 30
TESTED_SHARE = 3  # every third patient tests the tree


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Conditions in words, the decision, and how many rows of the fit meet them; leaves that agree are one rule."""

    conditions: tuple[str, ...]
    decision: str
    rows: int


@dataclass(frozen=True, kw_only=True)
class Surrogate:
    """A fitted tree. `fidelity` and `by_majority`, the score of the most frequent decision, are on unseen patients."""

    rules: tuple[Rule, ...]
    fidelity: float
    by_majority: float
    fitted_patients: int
    tested_patients: int
    applies: Rule | None = None  # the rule of the explained image


def fit_surrogate(
    measures_NK: np.ndarray,
    decisions_N: np.ndarray,
    patient_N: np.ndarray,
    labels: Sequence[str],
    spacing_mm: float | None,
    image_K: np.ndarray | None = None,
) -> Surrogate:
    """Fit a tree of at most three questions.

    Args:
        measures_NK: Named outputs in units of a reader (`named_outputs.measures`).
        decisions_N: The model's decision for each row, an index into `labels`.
        patient_N: The patient of each row, an index. Every third patient tests the tree.
        labels: The names of the decisions.
        spacing_mm: The size of a pixel, for the unit of the diameter.
        image_K: The named outputs of the image whose rule is wanted.

    Raises:
        DataError: There are too few patients, or the model decides the same for all rows.
    """
    patients = np.unique(patient_N)
    if len(patients) < FEWEST_PATIENTS:
        raise DataError(f"a surrogate needs {FEWEST_PATIENTS} patients, and this site has {len(patients)} with images")
    tested_N = np.isin(patient_N, patients[::TESTED_SHARE])
    fitted_N = ~tested_N
    if len(np.unique(decisions_N[fitted_N])) < 2:
        raise DataError("the model decides the same for all rows of this site, so there is nothing for a tree to learn")
    tree = DecisionTreeClassifier(max_depth=DEEPEST, min_samples_leaf=SMALLEST_LEAF, random_state=0)
    tree.fit(measures_NK[fitted_N], decisions_N[fitted_N])
    majority = np.bincount(decisions_N[fitted_N]).argmax()
    leaves = _rules(tree, labels, spacing_mm)
    return Surrogate(
        rules=tuple(dict.fromkeys(leaves.values())),
        fidelity=float((tree.predict(measures_NK[tested_N]) == decisions_N[tested_N]).mean()),
        by_majority=float((decisions_N[tested_N] == majority).mean()),
        fitted_patients=len(np.unique(patient_N[fitted_N])),
        tested_patients=len(np.unique(patient_N[tested_N])),
        applies=None if image_K is None else leaves[int(tree.apply(image_K[None])[0])],
    )


def _rules(tree: DecisionTreeClassifier, labels: Sequence[str], spacing_mm: float | None) -> dict[int, Rule]:
    """Return the rule of each leaf by the leaf's number."""
    nodes, leaves = tree.tree_, {}

    def decision(node: int) -> int:
        return int(tree.classes_[int(nodes.value[node][0].argmax())])

    def leaves_below(node: int) -> list[int]:
        if nodes.feature[node] < 0:
            return [node]
        return leaves_below(int(nodes.children_left[node])) + leaves_below(int(nodes.children_right[node]))

    def follow(node: int, bounds: dict[int, tuple[float, float]]) -> None:
        below = leaves_below(node)
        if len({decision(leaf) for leaf in below}) == 1:  # further questions would not change the decision
            conditions = tuple(_condition(place, *bound, spacing_mm) for place, bound in sorted(bounds.items()))
            rows = int(nodes.n_node_samples[node])
            rule = Rule(conditions=conditions, decision=labels[decision(node)], rows=rows)
            leaves.update(dict.fromkeys(below, rule))
            return
        column, threshold = int(nodes.feature[node]), float(nodes.threshold[node])
        low, high = bounds.get(column, (-np.inf, np.inf))
        follow(int(nodes.children_left[node]), {**bounds, column: (low, min(high, threshold))})
        follow(int(nodes.children_right[node]), {**bounds, column: (max(low, threshold), high)})

    follow(0, {})
    return leaves


def _condition(column: int, low: float, high: float, spacing_mm: float | None) -> str:
    output = OUTPUTS[column]
    lower, upper = (measure_text(output, end, spacing_mm) if np.isfinite(end) else "" for end in (low, high))
    if lower and upper:
        return f"{output.title} between {lower} and {upper}"
    return f"{output.title} above {lower}" if lower else f"{output.title} at most {upper}"
