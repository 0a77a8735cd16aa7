"""The end of a run in the terminal: one line a site. No picture library is loaded for it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from wardround.text import epsilon_of
from wardround_simulation.report.evidence import RunEvidence


def result_table(source: RunEvidence | Mapping[str, Any]) -> Table:
    """A line a site: patients, steps, ε, AUC on its own held-out patients, missing rounds; and a last line for the
    whole run.
    """
    result = source.result if isinstance(source, RunEvidence) else source
    sites, test, privacy = result.get("sites") or {}, result.get("test") or {}, result.get("privacy") or {}
    missing: dict[str, list[int]] = {}
    for entry in result.get("missing") or ():
        missing.setdefault(str(entry["site"]), []).append(int(entry["round"]))
    table = Table(
        caption=_caption(privacy, sites, test),
        caption_justify="left",
        show_footer=bool(sites),
        pad_edge=False,
        box=None,
    )
    largest = max((epsilon_of(site["epsilon"]) for site in sites.values() if "epsilon" in site), default=None)
    patients = [site.get("patients") for site in sites.values()]
    table.add_column("site", footer="all sites", overflow="fold")
    table.add_column(
        "patients", justify="right", footer=f"{sum(patients):,}" if patients and None not in patients else ""
    )
    table.add_column("steps", justify="right")
    table.add_column("ε", justify="right", footer="" if largest is None else _epsilon(largest))
    tells_apart = "test" in result  # only a classifier has an AUC at each site
    if tells_apart:
        table.add_column("AUC", justify="right", footer=_auc(test))
    table.add_column("missing rounds", justify="right", footer=str(sum(map(len, missing.values())) or "none"))
    for name, site in sorted(sites.items()):
        table.add_row(
            Text(name),
            f"{site['patients']:,}" if site.get("patients") is not None else "–",
            f"{site['steps']:,}" if site.get("steps") is not None else "–",
            _epsilon(epsilon_of(site["epsilon"])) if "epsilon" in site else "–",
            *([_auc(site.get("test") or {})] if tells_apart else []),
            str(len(missing.get(name, ())) or "none"),
        )
    return table


def _auc(test: Mapping[str, Any]) -> str:
    if test.get("auc") is None:
        return "–"
    low, high = test.get("auc_ci95") or (None, None)
    return f"{test['auc']:.3f}" + ("" if low is None else f" ({low:.3f}–{high:.3f})")


def _epsilon(epsilon: float) -> str:
    return "∞" if math.isinf(epsilon) else f"{math.ceil(epsilon * 100 - 1e-6) / 100:.2f}"


def _caption(privacy: Mapping[str, Any], sites: Mapping[str, Any], test: Mapping[str, Any]) -> Text:
    epsilons = [epsilon_of(site["epsilon"]) for site in sites.values() if "epsilon" in site]
    if not epsilons or any(math.isinf(epsilon) for epsilon in epsilons):
        caption = "ε = ∞: NO PRIVACY"
    else:
        unit, delta = privacy.get("unit", "patient"), privacy.get("delta")
        caption = f"ε per {unit} (add or remove one), δ = {delta}, {privacy.get('accountant')}"
    if test.get("auc") is not None:
        caption += f"; AUC per {test.get('unit')} on {test.get('patients')} held-out patients, 95 % interval"
    return Text(caption)
