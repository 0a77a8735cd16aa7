"""The end of a run in the terminal: a line for each site. This module loads no picture library.

If the run also trained models to compare with, the table leads with them: the AUC of the start, of each site's own
model, of the federated model and of the model on pooled data, side by side.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from wardround.tasks.assessment import SETTINGS
from wardround.text import epsilon_of
from wardround_simulation.report.evidence import RunEvidence


def result_table(source: RunEvidence | Mapping[str, Any]) -> Table:
    """Return a table with a line for each site and a last line for the whole run.

    The columns are patients, ε, the AUC of each model on the site's own held-out patients, and missing rounds. A run
    without other models shows the steps and the AUC of the federated model.
    """
    result = source.result if isinstance(source, RunEvidence) else source
    sites, test, privacy = result.get("sites") or {}, result.get("test") or {}, result.get("privacy") or {}
    compared = result.get("auc_by_model") or {}
    settings = [setting for setting in SETTINGS if any(setting in own for own in compared.get("sites", {}).values())]
    missing: dict[str, list[int]] = {}
    for entry in result.get("missing") or ():
        missing.setdefault(str(entry["site"]), []).append(int(entry["round"]))
    table = Table(
        caption=_caption(privacy, sites, test, compared),
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
    if not settings:
        table.add_column("steps", justify="right")
    table.add_column("ε", justify="right", footer="" if largest is None else _epsilon(largest))
    tells_apart = "test" in result  # only a classifier has an AUC at each site
    for setting in settings:
        footer = _auc_above_interval((compared.get("all") or {}).get(setting) or {})
        table.add_column(_heading(setting), justify="right", footer=footer, no_wrap=True)
    if tells_apart and not settings:
        table.add_column("AUC", justify="right", footer=_auc(test))
    table.add_column("missing\nrounds", justify="right", footer=str(sum(map(len, missing.values())) or "none"))
    for name, site in sorted(sites.items()):
        own = (compared.get("sites") or {}).get(name) or {}
        cells = [f"{site['patients']:,}" if site.get("patients") is not None else "–"]
        if not settings:
            cells.append(f"{site['steps']:,}" if site.get("steps") is not None else "–")
        cells.append(_epsilon(epsilon_of(site["epsilon"])) if "epsilon" in site else "–")
        cells += [_auc_above_interval(own.get(setting) or {}) for setting in settings]
        if tells_apart and not settings:
            cells.append(_auc(site.get("test") or {}))
        table.add_row(Text(name), *cells, str(len(missing.get(name, ())) or "none"))
    return table


def _heading(setting: str) -> Text:
    return Text(setting, style="bold" if setting == "federated" else "")


def _auc(test: Mapping[str, Any]) -> str:
    if test.get("auc") is None:
        return "–"
    low, high = test.get("auc_ci95") or (None, None)
    return f"{test['auc']:.3f}" + ("" if low is None else f" ({low:.3f}–{high:.3f})")


def _auc_above_interval(figures: Mapping[str, Any]) -> str:
    """Return the AUC and, on a second line, its interval, so that four models fit beside each other."""
    if figures.get("auc") is None:
        return "–"
    low, high = figures.get("auc_ci95") or (None, None)
    return f"{figures['auc']:.3f}" + ("" if low is None else f"\n{low:.2f}–{high:.2f}")


def _epsilon(epsilon: float) -> str:
    return "∞" if math.isinf(epsilon) else f"{math.ceil(epsilon * 100 - 1e-6) / 100:.2f}"


def _caption(
    privacy: Mapping[str, Any], sites: Mapping[str, Any], test: Mapping[str, Any], compared: Mapping[str, Any]
) -> Text:
    epsilons = [epsilon_of(site["epsilon"]) for site in sites.values() if "epsilon" in site]
    if not epsilons or any(math.isinf(epsilon) for epsilon in epsilons):
        caption = "ε = ∞: NO PRIVACY"
    else:
        unit, delta = privacy.get("unit", "patient"), privacy.get("delta")
        caption = f"ε per {unit} (add or remove one), δ = {delta}, {privacy.get('accountant')}"
    if test.get("auc") is not None:
        caption += f"; AUC per {test.get('unit')} on {test.get('patients')} held-out patients, 95 % interval"
    counts = _counts(compared.get("sites") or {})
    return Text(f"{counts}\n{caption}" if counts else caption)


def _counts(sites: Mapping[str, Any]) -> str:
    """Return at how many hospitals the federated model is above the start and above the hospital's own model."""
    parts = []
    for setting, name in (("start", "the start"), ("alone", "the hospital's own model")):
        pairs = [
            ((own.get("federated") or {}).get("auc"), (own.get(setting) or {}).get("auc")) for own in sites.values()
        ]
        known = [(federated, other) for federated, other in pairs if federated is not None and other is not None]
        if known:
            above = sum(federated > other for federated, other in known)
            parts.append(f"above {name} at {above} of {len(known)} hospitals")
    return f"The federated model is {' and '.join(parts)}." if parts else ""
