"""How good a run's model is, by its task: what a simulation may look at, which holds the patients itself.

A task's assessment is made once from the opened hospitals, says a few words after each round, and at the end gives what
`result.json`, the report and TensorBoard show of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from wardround.study.load import Study
from wardround_client.site.site import Weights
from wardround_simulation.engine.in_process import Hospital
from wardround_simulation.report.evidence import CurvePoint, ReportSection, ScoredSet


@dataclass(frozen=True, kw_only=True, eq=False)
class Assessed:
    """What a task's assessment found. `result` joins result.json, `site_tests` the entries of its sites; `weights` are
    those that the run releases. The rest is shown, as `RunEvidence` says.
    """

    weights: Weights
    result: Mapping[str, Any]
    site_tests: Mapping[str, Any]
    asked: str = ""
    headline: Sequence[str] = ()
    curve: Sequence[CurvePoint] = ()
    predictions: Sequence[ScoredSet] = ()
    sections: Sequence[ReportSection] = ()
    series: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    samples: Mapping[int, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class AtEnd:
    """What there is to assess when the last round is done."""

    weights: Weights  # of the global model
    released: Mapping[str, Any] | None  # figures that the sites released: `federated_test` of result.json
    others: Sequence[Hospital]  # other patients, of --test-data
    baselines: bool  # whether to train what the result is compared with
    show_images: bool  # phantoms, or the person asked for it
    stage: Callable[[str], None]


class Assessment(Protocol):
    """One task's assessment of one run."""

    def after_round(self, round_: int, weights: Weights) -> str:
        """Look at the global model after a round (0: the start); a few words for a person who watches. What it notes is
        kept in the run's folder, so that a resumed run has all of it.
        """

    def at_end(self, end: AtEnd) -> Assessed:
        """The figures and pictures of the whole run."""


def assessment_of(study: Study, hospitals: Sequence[Hospital], out: Path) -> Assessment:
    """The assessment of a study's task over its hospitals, noting in the run's folder `out`.

    Raises `DataError` where nobody is held out to test on.
    """
    from wardround_simulation.assess.classification import ClassificationAssessment
    from wardround_simulation.assess.restoration import RestorationAssessment
    from wardround_simulation.assess.synthesis import SynthesisAssessment

    kinds: dict[str, Callable[[Study, Sequence[Hospital], Path], Assessment]] = {
        "classification": ClassificationAssessment,
        "reconstruction": RestorationAssessment,
        "synthesis": SynthesisAssessment,
    }
    return kinds[study.study.task](study, hospitals, out)
