"""For whom the federated model works in a simulated run: figures by group of the held-out patients of all hospitals.

The attributes come from the cohorts, as at a real site (`wardround-site evaluate`). A simulation may look at all
hospitals together; in a federation each hospital sees its own figures only, and none of them is sent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from wardround.metrics.intervals import Estimate
from wardround.metrics.subgroups import (
    LEAST_OF_A_LABEL,
    LEAST_PATIENTS,
    UNKNOWN,
    GroupFigures,
    GroupTable,
    Scored,
    group_table,
    groups_by_patient,
)
from wardround.study.load import Study
from wardround.tasks.assessment import ReportSection, ReportTable, ScoredSet
from wardround_client.figures.evaluation import PLAIN_THRESHOLD
from wardround_client.figures.scores import difference
from wardround_client.sources.images.attributes import TITLES, VALUES, known_values
from wardround_simulation.engine.assessment import sites_of
from wardround_simulation.engine.in_process import Hospital


@dataclass(frozen=True, kw_only=True)
class ComparedTable:
    """One attribute: the federated model, and the hospitals' own models on the same patients if the run has them.

    In `alone`, each patient is scored by the model that the patient's hospital trained by itself. `differences` are the
    AUCs of the federated model minus those, for the groups shown.
    """

    federated: GroupTable
    alone: GroupTable | None = None
    differences: Mapping[str, Estimate | None] = field(default_factory=dict)


def group_tables(study: Study, hospitals: Sequence[Hospital], predictions: Sequence[ScoredSet]) -> list[ComparedTable]:
    """Return the tables by attribute; empty without scores of held-out images.

    Args:
        study: The study.
        hospitals: Its hospitals, in the order in which the run scored them.
        predictions: The scores of the run, of which those of the federated and the own models are used.

    Raises:
        ValueError: The scores are of other images than the held-out ones of the hospitals.
    """
    federated = next((one for one in predictions if one.setting == "federated"), None)
    if federated is None:
        return []
    rows, own = _scored(federated, federated.scores_N), _own_models(predictions, federated)
    thresholds = (PLAIN_THRESHOLD,) if rows.scores.ndim == 1 else ()
    tables = []
    for column, order in VALUES.items():
        cells = known_values(column, _held_out_cells(study, hospitals, column))
        if len(cells) != len(rows.labels_N):
            raise ValueError("the held-out images of the cohorts are not those that the run scored")
        groups = groups_by_patient(cells, rows.patients_N, order, largest=column == "lesion_size")
        if not set(groups) - {UNKNOWN}:
            continue
        table = group_table(column, groups, order, rows, thresholds)
        if own is None:
            tables.append(ComparedTable(federated=table))
            continue
        names = np.asarray(groups, dtype=object)
        shown = [name for name, figures in table.groups.items() if figures is not None]
        changes = {name: difference(rows.of(names == name), own.of(names == name)) for name in shown}
        alone = group_table(column, groups, order, own, thresholds)
        tables.append(ComparedTable(federated=table, alone=alone, differences=changes))
    return tables


def group_sections(tables: Sequence[ComparedTable]) -> list[ReportSection]:
    """Return the section "For whom it works" of the report; empty without tables."""
    if not tables:
        return []
    lines = [
        "The federated model on the held-out patients of all hospitals, by what the cohorts know of them. A group is "
        f"shown if it has at least {LEAST_PATIENTS} patients, and {LEAST_OF_A_LABEL} with each label; further groups "
        "are suppressed where a small one could be computed from the total.",
        "Figures are per patient, with 95 % intervals, here or in result.json. Sensitivity and specificity are at a "
        f"probability of {PLAIN_THRESHOLD}; predicted and observed are the mean probability and the share of positive "
        "patients, which should agree. Of many groups, one may look different by chance.",
        "In a federation, each hospital sees such tables of its own patients only (wardround-site evaluate); none of "
        "them leaves it.",
    ]
    if any(table.alone is not None for table in tables):
        lines.append(
            "“Alone”: each patient is scored by the model that the patient's hospital trained by itself. “Difference”: "
            "federated minus alone, on the same patients."
        )
    return [
        ReportSection(anchor="groups", title="For whom it works", lines=lines, tables=[_table(one) for one in tables])
    ]


def tables_to_json(tables: Sequence[ComparedTable]) -> dict[str, Any]:
    """Return `groups` of result.json: attribute -> group -> figures, null where suppressed."""
    return {table.federated.attribute: _groups_to_json(table) for table in tables}


def _groups_to_json(table: ComparedTable) -> dict[str, Any]:
    groups: dict[str, Any] = table.federated.to_json()["groups"]
    for name, figures in groups.items():
        alone = None if table.alone is None else table.alone.groups[name]
        if figures is not None and alone is not None:
            change = table.differences[name]
            figures["alone"] = {
                "auc": alone.auc,
                "auc_ci95": alone.auc_ci95,
                "difference": None if change is None else asdict(change),
            }
    return groups


def _scored(rows: ScoredSet, scores_N: np.ndarray) -> Scored:
    return Scored(scores=scores_N, labels_N=np.asarray(rows.labels_N), patients_N=np.asarray(rows.patients_N))


def _own_models(predictions: Sequence[ScoredSet], federated: ScoredSet) -> Scored | None:
    """Return the score of each image by its own hospital's model; None if a hospital has none."""
    own = {one.site: one for one in predictions if one.setting == "alone"}
    sites_N, scores_N = np.asarray(federated.sites_N), np.array(federated.scores_N, dtype=np.float64)
    for site in np.unique(sites_N).tolist():
        if site not in own:
            return None
        scores_N[sites_N == site] = own[site].scores_N[sites_N == site]
    return _scored(federated, scores_N)


def _held_out_cells(study: Study, hospitals: Sequence[Hospital], column: str) -> list[str]:
    cells: list[str] = []
    for hospital, site in zip(hospitals, sites_of(study, hospitals), strict=True):
        values = hospital.cohort.extra.get(column)
        cells += [values[row] if values else "" for row in np.flatnonzero(site.held_out_N)]
    return cells


def _table(table: ComparedTable) -> ReportTable:
    title = TITLES[table.federated.attribute]
    beside = ["alone", "difference"] if table.alone is not None else []
    columns = [title, "patients", "positive", "AUC", *beside, "sens., spec.", "pred., obs."]
    rows = []
    for name, figures in table.federated.groups.items():
        if figures is None:
            rows.append([name, "suppressed", *["–"] * (len(columns) - 2)])
            continue
        own = None if table.alone is None else table.alone.groups[name]
        rows.append([name, *_counts(figures), *_beside(table, name, own), *_rates(figures)])
    return ReportTable(caption=f"By {title}.", columns=columns, rows=rows)


def _counts(figures: GroupFigures) -> list[str]:
    positives = "–" if figures.positives is None else f"{figures.positives:,}"
    return [f"{figures.patients:,}", positives, _auc_text(figures)]


def _beside(table: ComparedTable, name: str, own: GroupFigures | None) -> list[str]:
    if table.alone is None:
        return []
    change = table.differences.get(name)
    text = "–" if change is None else f"{change.value:+.3f} ({change.low:+.3f} to {change.high:+.3f})"
    return ["–" if own is None or own.auc is None else f"{own.auc:.3f}", text]


def _rates(figures: GroupFigures) -> list[str]:
    """Return sensitivity and specificity, then predicted and observed. result.json has the intervals of all of them."""
    at = figures.thresholds[0] if figures.thresholds else None
    if at is None or figures.predicted is None or figures.observed is None:
        return ["–", "–"]
    return [
        f"{at.sensitivity.value:.0%}, {at.specificity.value:.0%}",
        f"{figures.predicted:.0%}, {figures.observed.value:.0%}",
    ]


def _auc_text(figures: GroupFigures) -> str:
    if figures.auc is None or figures.auc_ci95 is None:
        return "–"
    return f"{figures.auc:.3f} ({figures.auc_ci95[0]:.3f}–{figures.auc_ci95[1]:.3f})"
