"""For whom a model works at this site: figures by group of held-out patients, as plain data.

Nothing here leaves the site or is charged to the ledger. The figures are exact; small groups are suppressed
(`wardround.metrics.subgroups`), so that a printed table does not reveal single patients.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from wardround.errors import DataError
from wardround.handover.network import load_network
from wardround.handover.package import MODEL_FILE, Package
from wardround.metrics.intervals import Estimate
from wardround.metrics.subgroups import (
    LEAST_OF_A_LABEL,
    LEAST_PATIENTS,
    UNKNOWN,
    GroupFigures,
    GroupTable,
    Scored,
    all_patients,
    figures,
    group_table,
    groups_by_patient,
)
from wardround.tasks.classification.predict import OperatingPoint, rules_of
from wardround_client.figures.scores import difference, scored
from wardround_client.sources.images.attributes import VALUES, known_values
from wardround_client.training.batches import HeldOutRows

SCHEMA = 1
PLAIN_THRESHOLD = 0.5  # on the probability, for a model without measured operating points


@dataclass(frozen=True, kw_only=True)
class Compared:
    """Another model in one group: its AUC, and the AUC of the evaluated model minus it, on the same patients."""

    auc: float | None
    auc_ci95: tuple[float, float] | None
    difference: Estimate | None


@dataclass(frozen=True, kw_only=True)
class OtherModel:
    """Another model on the same patients: for all of them, and by attribute and group, for the groups shown."""

    name: str
    everyone: Compared | None
    groups: Mapping[str, Mapping[str, Compared]]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What an evaluation found.

    `everyone` is None if there are too few held-out patients for any figure. `points` are the operating points that the
    federation measured; without any, the threshold is `PLAIN_THRESHOLD`. `missing` are the attributes that no image of
    the cohort has.
    """

    study: str
    study_sha256: str
    run: str
    model_sha256: str
    labels: tuple[str, ...]
    calibrated: bool
    points: tuple[OperatingPoint, ...]
    everyone: GroupFigures | None
    tables: tuple[GroupTable, ...]
    missing: tuple[str, ...]
    others: tuple[OtherModel, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return plain values, the content of evaluation.json."""
        return {
            "schema": SCHEMA,
            **{name: getattr(self, name) for name in ("study", "study_sha256", "run", "model_sha256", "calibrated")},
            "labels": list(self.labels),
            "points": [asdict(point) for point in self.points],
            "everyone": None if self.everyone is None else self.everyone.to_json(),
            "tables": [table.to_json() for table in self.tables],
            "missing": list(self.missing),
            "others": [asdict(other) for other in self.others],
            "least_patients": LEAST_PATIENTS,
            "least_of_a_label": LEAST_OF_A_LABEL,
        }


def evaluate(
    package: Package, held_out: HeldOutRows, device: torch.device, others: Mapping[str, nn.Module] | None = None
) -> Evaluation:
    """Evaluate an exported model on held-out rows, beside `others` (name -> a network for the same images and labels).

    Raises:
        DataError: There is no held-out row.
        ModelError: The package's weights, calibration or figures are damaged.
    """
    if not len(held_out.labels_N):
        raise DataError("no held-out patient of this model's study; run wardround-site ingest with its study first")
    rules = rules_of(package.content)
    two_labels = len(rules.labels) == 2
    points = rules.points if two_labels else ()
    thresholds = tuple(point.threshold for point in points) or ((PLAIN_THRESHOLD,) if two_labels else ())
    rows = scored(load_network(package), held_out, device, rules.calibration)
    tables, missing, groups = [], [], {}
    for column, order in VALUES.items():
        cells = known_values(column, held_out.extra.get(column, ("",) * len(held_out.labels_N)))
        groups[column] = groups_by_patient(cells, held_out.patient_N, order, largest=column == "lesion_size")
        if set(groups[column]) == {UNKNOWN}:
            missing.append(column)
        else:
            tables.append(group_table(column, groups[column], order, rows, thresholds))
    everyone = all_patients(rows, thresholds)
    return Evaluation(
        study=package.study.study.name,
        study_sha256=package.study.sha256(),
        run=str(package.content["run"]),
        model_sha256=str(package.content["files"][MODEL_FILE]["sha256"]),
        labels=rules.labels,
        calibrated=rules.calibration is not None and two_labels,
        points=points,
        everyone=everyone,
        tables=tuple(tables),
        missing=tuple(missing),
        others=tuple(
            _other(name, rows, scored(network, held_out, device), groups, tables, everyone is not None)
            for name, network in (others or {}).items()
        ),
    )


def _other(
    name: str,
    rows: Scored,
    others: Scored,
    groups: Mapping[str, list[str]],
    tables: list[GroupTable],
    everyone: bool,
) -> OtherModel:
    def compared(kept: list[bool]) -> Compared:
        kept_N = np.asarray(kept)
        one, other = rows.of(kept_N), others.of(kept_N)
        found = figures(other)
        return Compared(auc=found.auc, auc_ci95=found.auc_ci95, difference=difference(one, other))

    return OtherModel(
        name=name,
        everyone=compared([True] * len(rows.labels_N)) if everyone else None,
        groups={
            table.attribute: {
                group: compared([one == group for one in groups[table.attribute]])
                for group, shown in table.groups.items()
                if shown is not None
            }
            for table in tables
        },
    )
