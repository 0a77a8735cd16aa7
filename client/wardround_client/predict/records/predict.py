"""Predicts with a released early warning at a hospital: each patient's risk over the hours, and what it is made of.

Everything stays at the site: nothing is sent, and neither the cohort nor the ledger is touched.

Shapes: P patients, T hours, V variables.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import nn

from wardround.handover.network import load_network
from wardround.handover.package import Package
from wardround.metrics.classification import probabilities
from wardround.networks.weights import trained_parameters, weights_of
from wardround.sources.records.study import records_data
from wardround.sources.records.vocabulary import load_vocabulary
from wardround.tasks.early_warning.explanation import RiskParts, missing, risk_parts, too_little
from wardround.tasks.early_warning.intercepts import from_histogram
from wardround.tasks.early_warning.risk import risk_by_hour
from wardround_client.rounds.evaluation import released_counts
from wardround_client.sources.records.asked import read_asked

Progress = Callable[[str, int, int], None]
Calibration = Literal["site", "federation", "none"]  # whose counts the shift of the logits comes from
SHOWN_HOURS = 6  # hours between two points of the curve of a head, which is asked anew at each of them


@dataclass(frozen=True, kw_only=True, eq=False)
class PatientRisk:
    """What the model says about one patient. `refused` says why it does not; then nothing else is known.

    `risks` are by the hour after which they hold. `parts` explain the last of them.
    """

    patient: str = field(repr=False)
    refused: str | None
    missing: tuple[str, ...]
    risks: tuple[tuple[int, float], ...] = ()
    parts: RiskParts | None = None

    @property
    def risk(self) -> float | None:
        """The risk at the end of what is known."""
        return self.risks[-1][1] if self.risks else None


@dataclass(frozen=True, kw_only=True, eq=False)
class Warned:
    """All that a call of `predict` found; the patients with the highest risk come first."""

    package: Package
    patients: tuple[PatientRisk, ...]
    not_used: Mapping[str, int]
    shift: float  # of all logits
    calibration: Calibration


def predict_records(
    package: Package, folder: Path, site: Path | None = None, progress: Progress | None = None
) -> Warned:
    """Predict for every patient in a folder of records.

    Args:
        package: The exported model.
        folder: The records, as `read_asked` takes them.
        site: The folder of the site, for an intercept from the counts that it released.
        progress: Called as `progress(stage, done, total)`.

    Raises:
        DataError: The records are missing or cannot be right.
        ModelError: The model is damaged.
        LedgerError: The site's stored counts are not those that its ledger settled.
    """
    told = progress or (lambda stage, done, total: None)
    data = records_data(package.study)
    vocabulary = load_vocabulary(data.vocabulary)
    network = load_network(package)
    asked = read_asked(folder, data)
    shift, calibration = _shift(package, network, site)
    hours = shown_hours(data.window_hours)
    patients = []
    with torch.no_grad():
        for number, (name, row_TV) in enumerate(zip(asked.ids, asked.rows_PTV, strict=True), 1):
            told("Predicting", number, len(asked.ids))
            refused = too_little(row_TV, vocabulary)
            not_known = missing(row_TV, vocabulary)
            if refused is not None:
                patients.append(PatientRisk(patient=name, refused=refused, missing=not_known))
                continue
            logits_H = risk_by_hour(network, torch.from_numpy(row_TV[None]), hours, vocabulary)[0].numpy()
            risks_H = probabilities(logits_H.astype(np.float64) + shift)
            with torch.enable_grad():
                parts = risk_parts(network, row_TV, vocabulary)
            risks = tuple(zip(hours, risks_H.tolist(), strict=True))
            patients.append(PatientRisk(patient=name, refused=None, missing=not_known, risks=risks, parts=parts))
    patients.sort(key=lambda one: -(one.risk if one.risk is not None else -1.0))
    return Warned(
        package=package,
        patients=tuple(patients),
        not_used=asked.not_used,
        shift=shift,
        calibration=calibration,
    )


def _shift(package: Package, network: nn.Module, site: Path | None) -> tuple[float, Calibration]:
    """The site's own intercept, or else the federation's, or else none."""
    if site is not None:
        weights = weights_of(trained_parameters(network, package.study))
        counts = released_counts(site, package.study, package.content["run"], weights)
        own = None if counts is None else from_histogram(counts)
        if own is not None:
            return own, "site"
    released = (package.content["calibration"] or {}).get("intercept")
    if isinstance(released, (int, float)):
        return float(released), "federation"
    return 0.0, "none"


def shown_hours(window_hours: int) -> list[int]:
    """The hours after which a risk is shown: every sixth, and the end of the window."""
    return [*range(SHOWN_HOURS, window_hours, SHOWN_HOURS), window_hours]


def risk_text(risk: float) -> str:
    """A risk for people: whole percent, but neither 0 nor 100."""
    return "< 1 %" if risk < 0.005 else "> 99 %" if risk > 0.995 else f"{risk:.0%}"
