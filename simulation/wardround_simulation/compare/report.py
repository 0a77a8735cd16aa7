"""The page and the table of a comparison: alone, pooled and federated at each ε, over all folds, beside the public
start.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from wardround import text
from wardround.study.load import Study
from wardround_simulation.compare import statistics
from wardround_simulation.compare.by_hospital import hospital_tables
from wardround_simulation.compare.statistics import FoldMean, Row
from wardround_simulation.report import text as words
from wardround_simulation.report.measures import Interval

SETTINGS = ("alone", "federated", "pooled")
NAMES = {"start": "start", "alone": "alone, mean of the sites", "federated": "federated", "pooled": "pooled"}

Value = Callable[[Row], float | None]  # what is taken of a row


def write_comparison(folder: Path, rows: Sequence[Row], study: Study, notes: Sequence[str] = ()) -> Path:
    """Writes `folder`/comparison.html from the rows of comparison.json and returns its path. Raises ValueError
    without a row.
    """
    if not rows:
        raise ValueError("the comparison has no rows, so there is nothing to show")
    from wardround_simulation.report.page import write_page

    epsilons, units = statistics.epsilons_of(rows), statistics.units_of(rows)
    main = [row for row in rows if str(row.get("unit", "slice")) == units[0]]
    means = _means(main, epsilons)
    content = {
        "title": f"{study.study.name}: Wardround comparison",
        "study": study,
        "headline": _headline(main, means),
        "no_privacy": any(math.isinf(epsilon) for epsilon in epsilons),
        "epsilon_labels": ["∞" if math.isinf(epsilon) else f"{epsilon:g}" for epsilon in epsilons],
        "start_name": text.start_name(study),
        "tables": [table for unit in units if (table := _table(rows, unit, epsilons))["rows"]],
        "gain_rows": _gain_rows(main, epsilons),
        "fold_rows": _fold_rows(means.get("federated", {}), epsilons),
        "hospital_tables": hospital_tables(main),
        "sites": _sites(main, epsilons),
        "external": _external(rows, epsilons, units),
        "pictures": _pictures(main, means, units[0]),
        "unit": units[0],
        "notes": list(notes),
        "repeat": [
            ("study hash", study.sha256()),
            ("seed", str(study.study.seed)),
            ("rows", f"{len(rows):,} in comparison.json"),
        ],
        "study_text": json.dumps(json.loads(study.canonical()), indent=2),
    }
    return write_page(folder / "comparison.html", "comparison.html.j2", content)


def comparison_table(rows: Sequence[Row]) -> Table:
    """Setting by ε for the terminal: mean AUC over all folds, ± half the 95 % interval."""
    epsilons, unit = statistics.epsilons_of(rows), statistics.units_of(rows)[0]
    main = [row for row in rows if str(row.get("unit", "slice")) == unit]
    means = _means(main, epsilons)
    table = Table(caption=Text(_counts(main, unit)), caption_justify="left", pad_edge=False, box=None)
    table.add_column("setting")
    for epsilon in epsilons:
        table.add_column("no privacy" if math.isinf(epsilon) else f"ε = {epsilon:g}", justify="right")
    start = _start(main)
    if start is not None:
        table.add_row(NAMES["start"], *[_plus_minus(start)] * len(epsilons))
    for setting, by_epsilon in means.items():
        table.add_row(NAMES[setting], *[_plus_minus(by_epsilon.get(epsilon)) for epsilon in epsilons])
    return table


def _means(
    rows: Sequence[Row], epsilons: Sequence[float], value: Value = statistics.auc_of
) -> dict[str, dict[float, FoldMean]]:
    """setting -> ε -> mean over folds, without what no row has."""
    out: dict[str, dict[float, FoldMean]] = {}
    for setting in SETTINGS:
        for epsilon in epsilons:
            mean = statistics.mean_over_folds(
                statistics.by_fold(statistics.select(rows, setting=setting, epsilon=epsilon), value)
            )
            if mean is not None:
                out.setdefault(setting, {})[epsilon] = mean
    return out


def _start(rows: Sequence[Row], value: Value = statistics.start_of) -> FoldMean | None:
    """The public start is the same at every ε and in every setting."""
    return statistics.mean_over_folds(statistics.by_fold(rows, value))


def _counts(rows: Sequence[Row], unit: str) -> str:
    tested = {(str(row["split"]), str(row["fold"])) for row in rows}
    splits, draws = {split for split, _ in tested}, {row.get("draw", 0) for row in rows}
    return (
        f"mean AUC per {unit} over {text.count_text(len(tested), 'fold')} of {text.count_text(len(splits), 'split')} "
        f"({text.count_text(statistics.patients_tested(rows), 'patient')} tested per split), "
        f"up to {text.count_text(len(draws), 'draw')} of the noise each; 95 % interval over the folds of a split"
    )


def _headline(rows: Sequence[Row], means: Mapping[str, Mapping[float, FoldMean]]) -> list[str]:
    lines = []
    federated = means.get("federated", {})
    told = [
        f"{words.auc_text(mean.value)}{f' ({_range(mean)})' if mean.low is not None else ''} "
        + ("without privacy (ε = ∞)" if math.isinf(epsilon) else f"at ε = {epsilon:g}")
        for epsilon, mean in federated.items()
    ]
    if told:
        lines.append(f"The federated model reaches a mean AUC of {_listed(told)}.")
    start = _start(rows)
    if start is not None:
        lines.append(f"The start, before any hospital's data, has {words.auc_text(start.value)} on the same patients.")
    counts = _counts(rows, str(rows[0].get("unit", "slice")))
    return [*lines, counts[0].upper() + counts[1:] + "."]


def _table(rows: Sequence[Row], unit: str, epsilons: Sequence[float]) -> dict[str, Any]:
    own = [row for row in rows if str(row.get("unit", "slice")) == unit]
    lines = [
        {"setting": s, "name": NAMES[s], "cells": [_cell(by.get(e)) for e in epsilons]}
        for s, by in _means(own, epsilons).items()
    ]
    start = _start(own)
    if start is not None:
        lines.insert(0, {"setting": "start", "name": NAMES["start"], "cells": [_cell(start)] * len(epsilons)})
    counts = _counts(own, unit)
    return {"unit": unit, "caption": counts[0].upper() + counts[1:] + ".", "rows": lines}


def _gain_rows(rows: Sequence[Row], epsilons: Sequence[float]) -> list[dict[str, Any]]:
    means = _means(rows, epsilons, statistics.gain_of)
    return [
        {"setting": s, "name": NAMES[s], "cells": [_signed_cell(by.get(e)) for e in epsilons]}
        for s, by in means.items()
    ]


def _fold_rows(federated: Mapping[float, FoldMean], epsilons: Sequence[float]) -> list[dict[str, Any]]:
    every = sorted({fold for mean in federated.values() for fold in mean.by_fold})
    return [
        {
            "split": split,
            "fold": fold,
            "cells": [
                words.auc_text(federated[e].by_fold.get((split, fold)) if e in federated else None) for e in epsilons
            ],
        }
        for split, fold in every
    ]


def _sites(rows: Sequence[Row], epsilons: Sequence[float]) -> list[dict[str, Any]]:
    """Per ε a picture and a table: each site's own model beside the federated one on that site's test patients,
    paired by fold.
    """
    from wardround_simulation.report import run_plots

    found = [(epsilon, [_site_at(rows, site, epsilon) for site in statistics.sites_of(rows)]) for epsilon in epsilons]
    intervals = [interval for _, sites in found for site in sites for interval in site["intervals"].values()]
    edges = [edge for interval in intervals for edge in (interval.low, interval.value, interval.high)]
    blocks = []
    for epsilon, sites in found:
        drawn = [(site["site"], site["intervals"]) for site in sites]
        if any(by_setting for _, by_setting in drawn):
            label = "ε = ∞ (no privacy)" if math.isinf(epsilon) else f"ε = {epsilon:g}"
            name = f"sites-{epsilon:g}".replace(".", "-")
            picture = run_plots.sites_side_by_side(drawn, name=name, title=label, shown_values=edges)
            blocks.append({"label": label, "rows": sites, "picture": picture})
    return blocks


def _site_at(rows: Sequence[Row], site: str, epsilon: float) -> dict[str, Any]:
    federated_rows = statistics.select(rows, setting="federated", epsilon=epsilon)
    alone = statistics.by_fold(
        statistics.select(rows, setting="alone", site=site, epsilon=epsilon), statistics.at_site(site)
    )
    federated = statistics.by_fold(federated_rows, statistics.at_site(site))
    start = statistics.by_fold(federated_rows, statistics.at_site(site, "start_auc"))
    by_fold = {"alone": alone, "federated": federated, "start": start}
    means = {name: statistics.mean_over_folds(one) for name, one in by_fold.items()}
    difference = statistics.mean_over_folds(statistics.minus(federated, alone))
    return {
        "site": site,
        "folds": difference.folds if difference else len(federated),
        "cells": [_cell(mean) for mean in means.values()],
        "intervals": {name: _interval(mean) for name, mean in means.items() if mean is not None},
        "difference": _signed_cell(difference),
        "below": difference is not None and difference.value < 0,
    }


def _external(rows: Sequence[Row], epsilons: Sequence[float], units: Sequence[str]) -> list[dict[str, Any]]:
    """The external test set by unit: the same patients for every fold's model, so the spread is that of the models
    alone.
    """
    tables = []
    for unit in units:
        own = [row for row in rows if str(row.get("unit", "slice")) == unit and row.get("external_auc") is not None]
        if not own:
            continue
        lines = []
        for setting, by_epsilon in _means(own, epsilons, lambda row: row["external_auc"]).items():
            cells = []
            for epsilon in epsilons:
                mean = by_epsilon.get(epsilon)
                values = list(mean.by_fold.values()) if mean else []
                spread = f"{min(values):.3f}–{max(values):.3f}" if len(values) > 1 else ""
                cells.append({"value": words.auc_text(mean.value if mean else None), "interval": spread})
            lines.append({"setting": setting, "name": NAMES[setting], "cells": cells})
        start = _start(own, lambda row: row.get("external_start_auc"))
        if start is not None:
            lines.insert(
                0,
                {
                    "setting": "start",
                    "name": NAMES["start"],
                    "cells": [{"value": words.auc_text(start.value), "interval": ""}] * len(epsilons),
                },
            )
        patients = max(int(row.get("external_patients") or 0) for row in own)
        tested = text.count_text(patients, "other patient")
        caption = f"AUC per {unit} on {tested}: mean over the models of all folds, below it their range."
        tables.append({"unit": unit, "caption": caption, "rows": lines})
    return tables


def _pictures(rows: Sequence[Row], means: Mapping[str, Mapping[float, FoldMean]], unit: str) -> list[Any]:
    from wardround_simulation.compare import plots

    pictures = [plots.auc_against_epsilon(means, _start(rows), unit)] if means else []
    gains = _means(rows, statistics.epsilons_of(rows), statistics.gain_of)
    return [*pictures, plots.gain_over_start(gains, unit)] if gains else pictures


def _cell(mean: FoldMean | None) -> dict[str, str]:
    return {"value": words.auc_text(mean.value if mean else None), "interval": _range(mean) if mean else ""}


def _signed_cell(mean: FoldMean | None) -> dict[str, str]:
    if mean is None:
        return {"value": "–", "interval": ""}
    return {
        "value": words.signed_text(mean.value),
        "interval": words.signed_interval_text(Interval(value=mean.value, low=mean.low, high=mean.high)),
    }


def _interval(mean: FoldMean) -> Interval:
    """An AUC's interval, which ends at 1 even where the normal theory of a mean does not know that."""
    if mean.low is None or mean.high is None:
        return Interval(value=mean.value)
    return Interval(value=mean.value, low=max(0.0, mean.low), high=min(1.0, mean.high))


def _range(mean: FoldMean) -> str:
    return words.interval_text(_interval(mean))


def _plus_minus(mean: FoldMean | None) -> str:
    if mean is None:
        return "–"
    return words.auc_text(mean.value) + (
        f" ±{(mean.high - mean.low) / 2:.3f}" if mean.low is not None and mean.high is not None else ""
    )


def _listed(items: Sequence[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"
