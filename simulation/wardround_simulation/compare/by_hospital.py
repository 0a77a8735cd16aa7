"""What a comparison says hospital by hospital: AUC and, where the task measures it, accuracy, with their mean.

A hospital with few patients of one label counts in the mean as much as a large one, as the hospital itself sees it.
The mean is over hospitals of their means over folds, so that a fold without both labels somewhere does not drop this
hospital from the mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from wardround_simulation.compare import statistics
from wardround_simulation.compare.statistics import Row
from wardround_simulation.report import text as words

FIGURES = {
    "auc": "AUC on each hospital's own test patients",
    "accuracy": "Accuracy on each hospital's own test patients, with its own intercept",
}
MEAN, MEAN_ALONE = "mean", "mean, own models"


@dataclass(frozen=True, kw_only=True)
class HospitalRow:
    """One line: a hospital or a mean, with a figure for each ε; None where no fold has it."""

    name: str
    setting: str
    values: tuple[float | None, ...]


def hospital_rows(rows: Sequence[Row], key: str) -> list[HospitalRow]:
    """Return the lines for a key of `FIGURES`: every hospital under the federated model, and the means.

    Args:
        rows: Rows of one unit, as in comparison.json.
        key: "auc" or "accuracy".

    Returns:
        The lines; none if no row has the figure.
    """
    epsilons, sites = statistics.epsilons_of(rows), statistics.sites_of(rows)
    federated = [[_at(rows, "federated", site, key, epsilon) for epsilon in epsilons] for site in sites]
    alone = [[_at(rows, "alone", site, key, epsilon) for epsilon in epsilons] for site in sites]
    out = []
    if _any(federated):
        for site, values in zip(sites, federated, strict=True):
            out.append(HospitalRow(name=site, setting="federated", values=tuple(values)))
        out.append(HospitalRow(name=MEAN, setting="federated", values=_means(federated)))
    if _any(alone):
        out.append(HospitalRow(name=MEAN_ALONE, setting="alone", values=_means(alone)))
    return out


def _at(rows: Sequence[Row], setting: str, site: str, key: str, epsilon: float) -> float | None:
    """The mean over folds at one hospital; of the setting alone by the hospital's own model."""
    wanted: dict[str, Any] = {"setting": setting, "epsilon": epsilon}
    if setting == "alone":
        wanted["site"] = site
    found = statistics.by_fold(statistics.select(rows, **wanted), statistics.at_site(site, key))
    mean = statistics.mean_over_folds(found)
    return None if mean is None else mean.value


def _any(values: Sequence[Sequence[float | None]]) -> bool:
    return any(value is not None for line in values for value in line)


def _means(values: Sequence[Sequence[float | None]]) -> tuple[float | None, ...]:
    means = []
    for column in zip(*values, strict=True):
        known = [value for value in column if value is not None]
        means.append(math.fsum(known) / len(known) if known else None)
    return tuple(means)


def hospital_tables(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return a table for each figure that rows of one unit have, for the page."""
    tables = []
    for key, caption in FIGURES.items():
        lines = [
            {
                "setting": line.setting,
                "name": line.name,
                "cells": [{"value": words.auc_text(value), "interval": ""} for value in line.values],
            }
            for line in hospital_rows(rows, key)
        ]
        if lines:
            tables.append({"caption": f"{caption}: mean over all folds and draws.", "rows": lines})
    return tables


def hospital_table(rows: Sequence[Row]) -> Table:
    """Return the hospitals by ε for the terminal: the federated model's figures on their test patients."""
    epsilons, unit = statistics.epsilons_of(rows), statistics.units_of(rows)[0]
    main = [row for row in rows if str(row.get("unit", "slice")) == unit]
    found = {key: {line.name: line.values for line in hospital_rows(main, key)} for key in FIGURES}
    shown = {key: lines for key, lines in found.items() if lines}
    caption = "federated model by hospital: " + ("AUC / accuracy" if "accuracy" in shown else "AUC")
    table = Table(caption=Text(caption), caption_justify="left", pad_edge=False, box=None)
    table.add_column("hospital")
    for epsilon in epsilons:
        table.add_column("no privacy" if math.isinf(epsilon) else f"ε = {epsilon:g}", justify="right")
    for name in dict.fromkeys(name for lines in shown.values() for name in lines):
        columns = zip(*(shown[key].get(name, (None,) * len(epsilons)) for key in shown), strict=True)
        table.add_row(Text(name), *(" / ".join(words.auc_text(value) for value in column) for column in columns))
    return table
