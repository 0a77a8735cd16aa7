"""Releases of a federation that trained a restorer: the trained weights, if the accept test passes, and its figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wardround.metrics.noised_auc import ScoreHistogram
from wardround.sources.images.study import image_data
from wardround.study.load import Study
from wardround.tasks.reconstruction.accept_test import Weights, accept_test, released_model
from wardround.tasks.reconstruction.study import section_of

SCORES_LABELS = False


def figures(histogram: ScoreHistogram) -> dict[str, Any]:
    """Return the accept test's result. The counts are of each patient's gain over the public start."""
    return {"accept_test": accept_test(histogram).to_json()}


def released_weights(
    figures: Mapping[str, Any] | None, trained: Weights, start: Weights
) -> tuple[Weights, dict[str, Any]]:
    """Return the trained weights, or the public start if the accept test failed; `released` records which."""
    weights, which = released_model(figures, trained, start)
    return weights, {"released": which}


def manifest(study: Study) -> dict[str, Any]:
    """Return the settings of the model that `wardround-site enhance` needs."""
    return {"reconstruction": section_of(study).model_dump(), "window_hu": list(image_data(study).window_hu[0])}


def card_lines(figures: Mapping[str, Any]) -> list[str]:
    """Return a line with the accept test's decision and its reason."""
    test = figures["accept_test"]
    return [f"- accept test: {'accepted' if test['accepted'] else 'not accepted'}; {test['reason']}"]
