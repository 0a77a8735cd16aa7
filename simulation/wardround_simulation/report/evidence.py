"""What a report is made from: one frozen record of a run, and nothing that could name a patient.

Patients appear as integers that mean nothing outside the record. `write_report` shows what is in here and computes
nothing it could not show its source for; what a caller leaves out, the report leaves out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from wardround.study.load import Study

if TYPE_CHECKING:
    from wardround_simulation.report.style import Picture  # a terminal shows results without a picture library

Setting = Literal["alone", "pooled", "federated", "start"]
SETTINGS: tuple[Setting, ...] = ("alone", "federated", "pooled", "start")


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """AUC of the global model after `round` rounds (0: the start) on held-out patients; of all sites when `site` is
    None.
    """

    round: int
    auc: float | None
    auc_low: float | None = None
    auc_high: float | None = None
    site: str | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoredSet:
    """One model's scores on the held-out test images; every set of a run holds the same images in the same order.

    `scores_N` float, the probability of the positive label (with more than two labels `(N, K)`, a probability each);
    `labels_N` int, index into the study's labels; `patients_N` int; `sites_N` the site each image comes from;
    `site` is where the model was trained, for the setting `alone` only. Raises ValueError when the columns do not
    fit together.
    """

    setting: Setting
    site: str | None = None
    scores_N: np.ndarray
    labels_N: np.ndarray
    patients_N: np.ndarray
    sites_N: np.ndarray

    def __post_init__(self) -> None:
        lengths = {len(self.scores_N), len(self.labels_N), len(self.patients_N), len(self.sites_N)}
        if len(lengths) != 1:
            raise ValueError(f"scores, labels, patients and sites differ in length: {sorted(lengths)}")
        if self.setting not in SETTINGS:
            raise ValueError(f"unknown setting {self.setting!r}; known: {', '.join(SETTINGS)}")
        if (self.setting == "alone") != (self.site is not None):
            raise ValueError("a site is given for the setting 'alone', and for no other")
        if not np.isfinite(self.scores_N).all():
            raise ValueError("a score is not a finite number")
        if len(self.labels_N) and int(np.min(self.labels_N)) < 0:
            raise ValueError("an image without a label cannot be tested on")


@dataclass(frozen=True, kw_only=True)
class SiteQuality:
    """What the quality gate did at one site: images accepted, files quarantined by reason."""

    accepted: int
    quarantined: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ReportTable:
    """A table of a section: the first column names its rows."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Sheet:
    """Images side by side, uint8 (N, C, H, W), `columns` to a row, each drawn `tile_px` wide."""

    title: str
    images_NCHW: np.ndarray
    columns: int
    caption: str
    tile_px: int = 96


@dataclass(frozen=True, kw_only=True, eq=False)
class ReportSection:
    """A part of the report that only one task has: words, then tables, drawings and images, in this order."""

    anchor: str
    title: str
    lines: Sequence[str] = ()
    tables: Sequence[ReportTable] = ()
    pictures: Sequence[Picture] = ()
    sheets: Sequence[Sheet] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class RunEvidence:
    """Everything `report.html` shows.

    `result` is result.json (schema 1). `metrics` are the lines of metrics.jsonl: `round, site`, and of `seconds,
    bytes_up, bytes_down, code` those that are known (`code` None or absent: the site answered). `montages` (site ->
    uint8 images_NCHW) only for phantoms or with --show-images. `asked` and `headline` are what a task other than
    classification says of itself, `sections` what only it has; `series` (name -> round -> number) and `samples` (round
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
