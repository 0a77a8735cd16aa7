"""What leaves a federation that trained a restorer: the accept test decides whether the trained model is released."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wardround.metrics.noised_auc import ScoreHistogram
from wardround.study.load import Study
from wardround.tasks.reconstruction.accept_test import Weights, accept_test, released_model
from wardround.tasks.reconstruction.study import section_of

SCORES_LABELS = False


def figures(histogram: ScoreHistogram) -> dict[str, Any]:
    """The accept test: the counts are of each patient's gain over the public start."""
    return {"accept_test": accept_test(histogram).to_json()}


def released_weights(
    figures: Mapping[str, Any] | None, trained: Weights, start: Weights
) -> tuple[Weights, dict[str, Any]]:
    """The trained weights, or the public start where the accept test did not pass; `released` names which."""
    weights, which = released_model(figures, trained, start)
    return weights, {"released": which}


def manifest(study: Study) -> dict[str, Any]:
    """What `wardround-site enhance` needs to know of the model."""
    return {"reconstruction": section_of(study).model_dump(), "window_hu": list(study.data.window_hu[0])}


def card_lines(figures: Mapping[str, Any]) -> list[str]:
    """The accept test and its decision."""
    test = figures["accept_test"]
    return [f"- accept test: {'accepted' if test['accepted'] else 'not accepted'}; {test['reason']}"]
