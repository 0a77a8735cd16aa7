"""How well a model works for groups of patients, with small groups suppressed.

A table of one attribute (sex, say) divides the patients into groups; each patient is in one group. A group is *open* if
it has at least `LEAST_PATIENTS` patients and, of each label that occurs among all patients, at least
`LEAST_OF_A_LABEL`. Only open groups are shown. More groups are suppressed until those that are suppressed together
would be open too: nobody can then obtain a figure of a small group by subtracting the groups shown from the total
(complementary suppression; Hundepool et al., Statistical Disclosure Control, 2012, chapter 4). This limits what a table
reveals; it is not differential privacy.

Shapes: N images, P patients, K labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from wardround.metrics.classification import brier, patient_scores, summary
from wardround.metrics.intervals import tail_of

LEAST_PATIENTS = 10  # the usual threshold of health statistics
LEAST_OF_A_LABEL = 5  # below it, a rate is too rough, and a group of one label only would reveal everybody's label
UNKNOWN, SEVERAL = "not known", "several"  # groups of patients without a value, and with different ones


@dataclass(frozen=True, kw_only=True)
class Rate:
    """A share of patients with its 95 % interval (Wilson 1927)."""

    value: float
    low: float
    high: float
    patients: int


@dataclass(frozen=True, kw_only=True)
class AtThreshold:
    """Sensitivity and specificity of one threshold on the probability."""

    threshold: float
    sensitivity: Rate
    specificity: Rate


@dataclass(frozen=True, kw_only=True)
class GroupFigures:
    """The figures of one open group, or of all patients.

    `predicted` is the mean predicted probability and `observed` the share of positive patients: a calibrated model has
    `predicted` within the interval of `observed`. Figures after `auc_ci95` exist for two labels only.
    """

    patients: int
    auc: float | None
    auc_ci95: tuple[float, float] | None
    positives: int | None = None
    predicted: float | None = None
    observed: Rate | None = None
    brier: float | None = None
    thresholds: tuple[AtThreshold, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class GroupTable:
    """One attribute: group -> its figures, in the order of the values; None for a suppressed group."""

    attribute: str
    groups: dict[str, GroupFigures | None]

    def to_json(self) -> dict[str, Any]:
        """Return plain values; a suppressed group is null."""
        groups = {name: None if one is None else one.to_json() for name, one in self.groups.items()}
        return {"attribute": self.attribute, "groups": groups}


@dataclass(frozen=True, kw_only=True, eq=False)
class Scored:
    """Scores of one model for N images.

    `scores` are probabilities of the second label, (N,), or of each of more labels, (N, K). `calibrated_N` are the
    probabilities to compare with the observed shares; None: `scores`.
    """

    scores: np.ndarray
    labels_N: np.ndarray
    patients_N: np.ndarray
    calibrated_N: np.ndarray | None = None

    def of(self, rows_N: np.ndarray) -> Scored:
        """Return the images where `rows_N` is true."""
        calibrated_N = None if self.calibrated_N is None else self.calibrated_N[rows_N]
        return Scored(
            scores=self.scores[rows_N],
            labels_N=self.labels_N[rows_N],
            patients_N=self.patients_N[rows_N],
            calibrated_N=calibrated_N,
        )


def groups_by_patient(
    values_N: Sequence[str], patients_N: ArrayLike, order: Sequence[str], *, largest: bool = False
) -> list[str]:
    """Return the group of each image's patient, so that each patient is in one group.

    Images without a value ("") do not count; a patient without any is in the group `UNKNOWN`. A patient with different
    values is in the last of them in `order` if `largest` is true, and otherwise in the group `SEVERAL`.
    """
    found: dict[int, set[str]] = {}
    patients = np.asarray(patients_N).tolist()
    for patient, value in zip(patients, values_N, strict=True):
        found.setdefault(patient, set()).update([value] if value else [])
    rank = {name: place for place, name in enumerate(order)}

    def group_of(values: set[str]) -> str:
        if len(values) > 1 and not largest:
            return SEVERAL
        return max(values, key=lambda name: rank.get(name, -1), default=UNKNOWN)

    group = {patient: group_of(values) for patient, values in found.items()}
    return [group[patient] for patient in patients]


def open_groups(groups_N: Sequence[str], labels_N: ArrayLike, patients_N: ArrayLike) -> set[str]:
    """Return the groups of one attribute that may be shown.

    Guarantee: each of them is open, and so are the patients of all other groups together, unless there are none. A
    label counts for a patient who has an image with it.

    Args:
        groups_N: The group of each image's patient.
        labels_N: The label of each image, 0 or more.
        patients_N: The patient of each image.

    Raises:
        ValueError: A patient is in two groups.
    """
    names, labels_N, patients_N = np.asarray(groups_N, dtype=object), np.asarray(labels_N), np.asarray(patients_N)
    everywhere = np.unique(labels_N)
    sizes = {name: len(np.unique(patients_N[names == name])) for name in set(names.tolist())}
    if sum(sizes.values()) != len(np.unique(patients_N)):
        raise ValueError("a patient is in two groups of one attribute")

    def is_open(rows_N: np.ndarray) -> bool:
        if len(np.unique(patients_N[rows_N])) < LEAST_PATIENTS:
            return False
        of_label = (len(np.unique(patients_N[rows_N & (labels_N == label)])) for label in everywhere)
        return all(count >= LEAST_OF_A_LABEL for count in of_label)

    shown = {name for name in sizes if is_open(names == name)}
    while shown and shown != set(sizes) and not is_open(~np.isin(names, list(shown))):
        shown.remove(min(shown, key=lambda name: (sizes[name], name)))
    return shown


def group_table(
    attribute: str, groups_N: Sequence[str], order: Sequence[str], rows: Scored, thresholds: Sequence[float] = ()
) -> GroupTable:
    """Return the table of one attribute.

    Args:
        attribute: Its name.
        groups_N: The group of each image's patient (`groups_by_patient`).
        order: The groups in the order of the table; others come after them.
        rows: The images' scores.
        thresholds: On the probability, for two labels.
    """
    rank = {name: place for place, name in enumerate([*order, SEVERAL, UNKNOWN])}
    shown, groups = open_groups(groups_N, rows.labels_N, rows.patients_N), np.asarray(groups_N, dtype=object)
    return GroupTable(
        attribute=attribute,
        groups={
            name: figures(rows.of(groups == name), thresholds) if name in shown else None
            for name in sorted(set(groups_N), key=lambda name: (rank.get(name, len(rank)), name))
        },
    )


def all_patients(rows: Scored, thresholds: Sequence[float] = ()) -> GroupFigures | None:
    """Return the figures of all patients together; None if they are no open group."""
    everyone = ["all"] * len(rows.labels_N)
    return figures(rows, thresholds) if open_groups(everyone, rows.labels_N, rows.patients_N) else None


def figures(rows: Scored, thresholds: Sequence[float] = ()) -> GroupFigures:
    """Return the figures of some images, by patient for two labels (a patient's highest score counts)."""
    if rows.scores.ndim == 2:
        found = summary(rows.scores, rows.labels_N, rows.patients_N, "slice")
        return GroupFigures(patients=found.patients, auc=found.auc, auc_ci95=found.auc_ci95)
    scores_P, labels_P, patients_P = patient_scores(rows.scores, rows.labels_N, rows.patients_N)
    shown_N = rows.scores if rows.calibrated_N is None else rows.calibrated_N
    calibrated_P = patient_scores(shown_N, rows.labels_N, rows.patients_N)[0]
    found = summary(scores_P, labels_P, patients_P, "patient")
    positives = int(labels_P.sum())
    return GroupFigures(
        patients=len(labels_P),
        auc=found.auc,
        auc_ci95=found.auc_ci95,
        positives=positives,
        predicted=float(calibrated_P.mean()),
        observed=rate(positives, len(labels_P)),
        brier=brier(calibrated_P, labels_P),
        thresholds=tuple(_at(threshold, scores_P, labels_P == 1) for threshold in thresholds),
    )


def rate(count: int, of: int, confidence: float = 0.95) -> Rate:
    """Return a share with Wilson's interval. Raises `ValueError` for a share of nobody."""
    if of < 1:
        raise ValueError("a share needs at least one patient")
    z, share = NormalDist().inv_cdf(1 - tail_of(confidence)), count / of
    centre = (share + z**2 / (2 * of)) / (1 + z**2 / of)
    reach = z * (share * (1 - share) / of + z**2 / (4 * of**2)) ** 0.5 / (1 + z**2 / of)
    return Rate(
        value=share, low=max(0.0, min(share, centre - reach)), high=min(1.0, max(share, centre + reach)), patients=of
    )


def _at(threshold: float, scores_P: np.ndarray, positive_P: np.ndarray) -> AtThreshold:
    above_P = scores_P >= threshold
    return AtThreshold(
        threshold=threshold,
        sensitivity=rate(int((above_P & positive_P).sum()), int(positive_P.sum())),
        specificity=rate(int((~above_P & ~positive_P).sum()), int((~positive_P).sum())),
    )
