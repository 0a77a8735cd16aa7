"""How good a model is: what a simulation gives to a task's `assess.py`, and what it gets back, all as plain data.

A simulation holds the patients itself, so an assessment may look at them exactly. It is made once a run from the data
of the sites, notes a few figures after each round, and at the end returns what `result.json`, the report and
TensorBoard show. Patients appear as integers that mean nothing outside the run. Nothing here draws or writes a page.

Shapes: N rows of one site or of all sites together, K labels, C channels, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

if TYPE_CHECKING:
    from wardround.metrics.noised_auc import ScoreHistogram
    from wardround.study.load import Study

Weights = dict[str, np.ndarray]  # float32 by name, as they travel
ComparisonRow = dict[str, Any]  # one line of comparison.json
Setting = Literal["alone", "pooled", "federated", "start"]
SETTINGS: tuple[Setting, ...] = ("start", "alone", "federated", "pooled")  # the order of tables and pictures


# What a simulation gives


class Rows(Protocol):
    """Rows in memory or on disk, indexed like an array along the first axis."""

    def __len__(self) -> int: ...

    def __getitem__(self, chosen: slice | np.ndarray) -> np.ndarray: ...


@dataclass(frozen=True, kw_only=True, eq=False)
class SiteData:
    """One site's rows. `inputs_N` is what training reads of a row: its image, or the study's frozen features of it.

    A row may be neither a training row nor held out, for instance where the task needs a label and it has none.
    """

    name: str
    values_N: Rows  # the site's prepared rows, any shape; of images uint8 (N, C, H, W)
    inputs_N: Rows
    labels_N: np.ndarray  # int16, index into the study's labels, -1 for no label
    patient_N: np.ndarray  # 0 .. patients - 1
    patients: int
    training_N: np.ndarray  # bool: rows to train on
    held_out_N: np.ndarray  # bool: rows to test on


class Trainer(Protocol):
    """Training in the simulation's own process, by the round functions of a real site and server.

    Each method trains on the `training_N` of the sites, from the study's first weights, under the privacy of the study.
    """

    def federated(self, study: Study, sites: Sequence[SiteData]) -> Weights:
        """The study's rounds over the sites."""

    def alone(self, study: Study, site: SiteData) -> Weights:
        """The same study for one site by itself, at the same epsilon."""

    def pooled(self, study: Study, sites: Sequence[SiteData]) -> Weights:
        """The same study on the data of all sites in one place, with one noise."""

    def noised_counts(self, study: Study, scores_P: np.ndarray, positive_P: np.ndarray) -> ScoreHistogram:
        """What a site would release about these patients: their counts by label and score, with the noise of
        `evaluation.epsilon`. `scores_P` are probabilities of the positive label, `positive_P` bool.
        """


@dataclass(frozen=True, kw_only=True)
class AtEnd:
    """What there is to assess when the last round is done."""

    weights: Weights  # of the global model
    released: Mapping[str, Any] | None  # figures that the sites released: `federated_test` of result.json
    site_counts: Mapping[str, ScoreHistogram] = field(default_factory=dict)  # what each site released, as it knows it
    others: Sequence[SiteData]  # other patients, of --test-data, all held out
    baselines: bool  # whether to train what the result is compared with
    show_images: bool  # phantoms, or the person asked for it
    stage: Callable[[str], None]


@dataclass(frozen=True, kw_only=True, eq=False)
class SyntheticImages:
    """Images that a model made, as a task's `use.py` returns them: `images_NCHW` uint8 and `labels_N` int64, index into
    the study's labels.
    """

    images_NCHW: np.ndarray
    labels_N: np.ndarray


# What an assessment returns


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
            raise ValueError("a site is given only for the setting 'alone'")
        if not np.isfinite(self.scores_N).all():
            raise ValueError("a score is not a finite number")
        if len(self.labels_N) and int(np.min(self.labels_N)) < 0:
            raise ValueError("an image without a label cannot be used for testing")


@dataclass(frozen=True, kw_only=True)
class ReportTable:
    """A table of a section: the first column names its rows."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One curve by round, with its own vertical axis. `colour` is that of a setting in all pictures of a report."""

    label: str  # of the vertical axis
    values: Sequence[float]
    colour: Setting = "federated"
    reference: float | None = None  # a dashed line across
    limits: tuple[float | None, float | None] = (None, None)  # of the vertical axis; None: what the values need


@dataclass(frozen=True, kw_only=True)
class RoundPlot:
    """Panels above each other over the same rounds."""

    name: str  # letters; no other picture of the report has it
    title: str
    description: str  # for a person who cannot see it
    caption: str
    rounds: Sequence[int]
    panels: Sequence[Panel]


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
    """A part of the report that only one task has: text, then tables, plots and images, in this order."""

    anchor: str
    title: str
    lines: Sequence[str] = ()
    tables: Sequence[ReportTable] = ()
    plots: Sequence[RoundPlot] = ()
    sheets: Sequence[Sheet] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Assessed:
    """What a task's assessment found. `result` joins result.json, `site_tests` the entries of its sites; `weights` are
    those that the run releases. The rest is shown.

    A task without AUCs describes itself: `asked` is what the study was for, `headline` what came out. `series` (name ->
    round -> number) and `samples` (round -> a sheet, uint8 (H, W)) go to TensorBoard.
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


class Assessment(Protocol):
    """One task's assessment of one run."""

    def after_round(self, round_: int, weights: Weights) -> str:
        """Look at the global model after a round (0: the start); returns a few words for a person who watches. What it
        notes is kept in the run's folder, so that a resumed run has all of it.
        """

    def at_end(self, end: AtEnd) -> Assessed:
        """The figures and pictures of the whole run."""


def patient_offsets(sites: Sequence[SiteData]) -> list[int]:
    """What to add to each site's `patient_N`, so that no number is used at two sites."""
    return list(accumulate((site.patients for site in sites[:-1]), initial=0))
