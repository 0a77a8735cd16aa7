"""What a report is made from: one frozen record of a run, and nothing that could name a patient.

Patients appear as integers that mean nothing outside the record. `write_report` shows what is in here and computes
nothing it could not show its source for; what a caller leaves out, the report leaves out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from wardround.study.load import Study
from wardround.tasks.assessment import CurvePoint, ReportSection, ScoredSet, Setting


@dataclass(frozen=True, kw_only=True)
class SiteQuality:
    """What the quality gate did at one site: images accepted, files quarantined or left out by reason."""

    accepted: int
    quarantined: Mapping[str, int] = field(default_factory=dict)
    left_out: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, eq=False)
class RunEvidence:
    """Everything `report.html` shows.

    `result` is result.json (schema 1). `metrics` are the lines of metrics.jsonl: `round, site`, and of `seconds,
    bytes_up, bytes_down, code` those that are known (`code` None or absent: the site answered). `montages` (site ->
    uint8 images_NCHW) only for phantoms or with --show-images. `asked` and `headline` are what a task without
    AUCs says of itself, `sections` what only it has; `series` (name -> round -> number) and `samples` (round
    -> a sheet, uint8 (H, W), of phantoms only) go to TensorBoard.
    """

    study: Study
    result: Mapping[str, Any]
    curve: Sequence[CurvePoint] = ()
    predictions: Sequence[ScoredSet] = ()
    metrics: Sequence[Mapping[str, Any]] = ()
    asked: str = ""
    headline: Sequence[str] = ()
    sections: Sequence[ReportSection] = ()
    series: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    samples: Mapping[int, np.ndarray] = field(default_factory=dict)
    montages: Mapping[str, np.ndarray] | None = None
    quality: Mapping[str, SiteQuality] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    command: str = ""
    architecture_sha256: str = ""
    notes: Sequence[str] = ()

    @property
    def unit(self) -> str:
        """What one test figure is about: slice, nodule, image or patient."""
        return str((self.result.get("test") or {}).get("unit") or "image")

    def scored(self, setting: Setting, site: str | None = None) -> ScoredSet | None:
        """The scores of one setting (for `alone`: of the model trained at `site`), or None when the run has none."""
        return next((s for s in self.predictions if s.setting == setting and s.site == site), None)
