"""For whom the federated model works in a simulated run: figures by group of the held-out patients of all hospitals.

The attributes come from the cohorts, as at a real site (`wardround-site evaluate`). A simulation may look at all
hospitals together; in a federation each hospital sees its own figures only, and none of them is sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from wardround.metrics.subgroups import (
    LEAST_OF_A_LABEL,
    LEAST_PATIENTS,
    UNKNOWN,
    GroupFigures,
    GroupTable,
    Rate,
    Scored,
    group_table,
    groups_by_patient,
)
from wardround.study.load import Study
from wardround.tasks.assessment import ReportSection, ReportTable, ScoredSet
from wardround_client.figures.evaluation import PLAIN_THRESHOLD
from wardround_client.sources.images.attributes import TITLES, VALUES, known_values
from wardround_simulation.engine.assessment import sites_of
from wardround_simulation.engine.in_process import Hospital


def group_tables(study: Study, hospitals: Sequence[Hospital], predictions: Sequence[ScoredSet]) -> list[GroupTable]:
    """Return the tables of the federated model by attribute; empty without scores of held-out images.

    Args:
        study: The study.
        hospitals: Its hospitals, in the order in which the run scored them.
        predictions: The scores of the run, of which the federated model's are used.
    """
    federated = next((one for one in predictions if one.setting == "federated"), None)
    if federated is None:
        return []
    rows = Scored(
        scores=federated.scores_N,
        labels_N=np.asarray(federated.labels_N),
        patients_N=np.asarray(federated.patients_N),
    )
    two_labels = rows.scores.ndim == 1
    tables = []
    for column, order in VALUES.items():
        cells = known_values(column, _held_out_cells(study, hospitals, column))
        if len(cells) != len(rows.labels_N):
            raise ValueError("the held-out images of the cohorts are not those that the run scored")
        groups = groups_by_patient(cells, rows.patients_N, order, largest=column == "lesion_size")
        if set(groups) - {UNKNOWN}:
            tables.append(group_table(column, groups, order, rows, (PLAIN_THRESHOLD,) if two_labels else ()))
    return tables


def group_sections(tables: Sequence[GroupTable]) -> list[ReportSection]:
    """Return the section "For whom it works" of the report; empty without tables."""
    if not tables:
        return []
    return [
        ReportSection(
            anchor="groups",
            title="For whom it works",
            lines=[
                "The federated model on the held-out patients of all hospitals, by what the cohorts know of them. "
                f"A group is shown if it has at least {LEAST_PATIENTS} patients, and {LEAST_OF_A_LABEL} with each "
                "label; further groups are suppressed where a small one could be computed from the total.",
                "Figures are per patient, with 95 % intervals. Sensitivity and specificity are at a probability of "
                f"{PLAIN_THRESHOLD}; “predicted” and “observed” are the mean probability and the share of positive "
                "patients, which should agree. Of many groups, one may look different by chance.",
                "In a federation, each hospital sees such tables of its own patients only (wardround-site evaluate); "
                "none of them leaves it.",
            ],
            tables=[_table(table) for table in tables],
        )
    ]


def tables_to_json(tables: Sequence[GroupTable]) -> dict[str, Any]:
    """Return `groups` of result.json: attribute -> group -> figures, null where suppressed."""
    return {table.attribute: table.to_json()["groups"] for table in tables}


def _held_out_cells(study: Study, hospitals: Sequence[Hospital], column: str) -> list[str]:
    cells: list[str] = []
    for hospital, site in zip(hospitals, sites_of(study, hospitals), strict=True):
        values = hospital.cohort.extra.get(column)
        cells += [values[row] if values else "" for row in np.flatnonzero(site.held_out_N)]
    return cells


def _table(table: GroupTable) -> ReportTable:
    title = TITLES[table.attribute]
    rows = [[name, *_cells(figures)] for name, figures in table.groups.items()]
    columns = [title, "patients", "positive", "AUC", "sensitivity", "specificity", "predicted", "observed"]
    return ReportTable(caption=f"By {title}.", columns=columns, rows=rows)


def _cells(figures: GroupFigures | None) -> list[str]:
    if figures is None:
        return ["suppressed", *["–"] * 6]
    at = figures.thresholds[0] if figures.thresholds else None
    auc = "–"
    if figures.auc is not None and figures.auc_ci95 is not None:
        auc = f"{figures.auc:.3f} ({figures.auc_ci95[0]:.3f}–{figures.auc_ci95[1]:.3f})"
    return [
        f"{figures.patients:,}",
        "–" if figures.positives is None else f"{figures.positives:,}",
        auc,
        _rate_text(at.sensitivity if at else None),
        _rate_text(at.specificity if at else None),
        "–" if figures.predicted is None else f"{figures.predicted:.0%}",
        _rate_text(figures.observed),
    ]


def _rate_text(rate: Rate | None) -> str:
    return "–" if rate is None else f"{rate.value:.0%} ({100 * rate.low:.0f}–{rate.high:.0%})"
