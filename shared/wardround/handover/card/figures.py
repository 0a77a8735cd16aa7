"""The figures of a model card in sentences: noised figures about held-out patients, and the privacy guarantee."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from wardround.tasks.registry import release_part
from wardround.text import epsilon_of, epsilon_text, promise
from wardround.wire.reply_codes import code_text

NO_FIGURES = "None: the study asked the sites for no figures about held-out patients."


def privacy_statement(epsilon: float, delta: float) -> list[str]:
    """Return the privacy guarantee of the model for a patient, or the lack of one, as sentences."""
    if math.isinf(epsilon):
        return ["No privacy: this model was trained without noise, and nothing bounds what it reveals about a patient."]
    return [
        *promise(epsilon, delta),
        "Settings of the study that were chosen by looking at private data are not covered by this epsilon.",
    ]


def promised_line(privacy: Mapping[str, Any]) -> str:
    """Return the promised ε with its δ, unit and relation."""
    return (
        f"Promised: ε {epsilon_text(privacy['epsilon_promised'])} at δ {privacy['delta']:g}, for each "
        f"{privacy['unit']} of each site ({privacy['relation']})."
    )


def figures_heading(figures: Mapping[str, Any]) -> str:
    """Return which patients the noised figures are about, and what they cost."""
    epsilon = epsilon_of(figures["epsilon"])
    cost = f"noised counts, ε {epsilon_text(epsilon)} for each of them" if math.isfinite(epsilon) else "no privacy"
    sites = ", ".join(figures["sites"]) or "no site"
    return f"About {figures['patients_noised']} held-out patients of {sites} ({cost}):"


def figures_lines(task: str, figures: Mapping[str, Any]) -> list[str]:
    """Return one line for each noised figure, each site's own, and each site without figures."""
    release = release_part(task)
    return [
        *(line.removeprefix("- ") for line in release.card_lines(figures)),
        *(_scores(figures) if release.SCORES_LABELS else _patients_of_sites(figures)),
        *(f"{one['site']} released none: {code_text(one['code'])}" for one in figures["missing"]),
    ]


def released_weights_line(which: str | None) -> str | None:
    """Describe the weights in the file, for a task that may release its public start instead of the trained model."""
    texts = {
        "trained": "The file contains the weights that the sites trained.",
        "start": "The file contains the public start weights and nothing that the sites trained.",
    }
    return texts.get(which) if which else None


def _patients_of_sites(figures: Mapping[str, Any]) -> list[str]:
    return [
        f"{site} alone: about {one['patients_noised']} patients"
        for site, one in sorted(figures.get("per_site", {}).items())
    ]


def _scores(figures: Mapping[str, Any]) -> list[str]:
    """Return lines with the AUC, pooled and of each site that allows it, and sensitivity at fixed specificities."""
    return [
        f"all together: {auc_text(figures)}",
        *(f"{site} alone: {auc_text(one)}" for site, one in sorted(figures.get("per_site", {}).items())),
        *(
            f"sensitivity {row['sensitivity']:.3f} ({row['low']:.3f}–{row['high']:.3f}) at "
            f"{row['specificity']:.0%} specificity"
            for row in figures["thresholds"]
        ),
    ]


def auc_text(figures: Mapping[str, Any]) -> str:
    """Return an AUC with its 95 % interval."""
    if figures["auc"] is None:
        return "no AUC, because the noise is too large compared with the counts"
    low, high = figures["auc_ci95"]
    return f"AUC {figures['auc']:.3f} (95 %: {low:.3f}–{high:.3f})"
