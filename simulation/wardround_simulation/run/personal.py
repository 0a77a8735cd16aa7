"""The personalisation after the last round of a simulated run: at each hospital, by the functions of a real site.

A real site starts it with `wardround-site personalise`; here it runs for every hospital if the study asks for it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from wardround.errors import RefusedError
from wardround.storage.json_numbers import json_number
from wardround.study.load import Study
from wardround.tasks.assessment import ReportSection, ReportTable
from wardround.text import epsilon_text
from wardround_client.figures.personal import personalised_and_tested
from wardround_client.rounds.personalisation import release_question
from wardround_client.site.site import Weights, open_site


def personalise_all(
    study: Study,
    run_id: str,
    folders: Mapping[str, Path],
    weights: Weights,
    architecture_sha256: str,
    warn: Callable[[str], None],
) -> dict[str, dict[str, Any]]:
    """Personalise the released weights at each hospital; return `personalised` of result.json by hospital.

    A hospital that refuses has the code of its refusal instead of figures. The result is empty if the study has no
    `[personalisation]`.
    """
    if study.personalisation is None:
        return {}
    question = release_question(study, run_id, weights, architecture_sha256)
    admitted: dict[str, object] = {}  # shared, so that the clipping engines are proved once
    found: dict[str, dict[str, Any]] = {}
    for name, folder in folders.items():
        site = dataclasses.replace(open_site(folder), admitted=admitted)
        try:
            made, outcome = personalised_and_tested(question, site)
        except RefusedError as error:
            warn(f"{name}: not personalised: {error}")
            found[name] = {"code": error.code}
            continue
        finally:
            site.ledger.close()
        cost = {"epsilon": made.epsilon.value, "epsilon_with_training": made.together.value}
        found[name] = {**{key: json_number(value) for key, value in cost.items()}, **outcome.to_json()}
    return found


def personal_sections(found: Mapping[str, Mapping[str, Any]]) -> Sequence[ReportSection]:
    """Return the report's section: federated beside personalised, by hospital. Empty without personalisation."""
    if not found:
        return []
    rows = [[name, *_row(one)] for name, one in sorted(found.items())]
    helped = [name for name, one in sorted(found.items()) if one.get("verdict") == "helped"]
    summary = f"It helped at {', '.join(helped)}." if helped else "It clearly helped at none of them."
    columns = [
        "hospital",
        "held-out patients",
        "federated",
        "personalised",
        "difference",
        "verdict",
        "ε",
        "ε with rounds",
    ]
    return [
        ReportSection(
            anchor="personalised",
            title="Personalised models",
            lines=[
                "After the last round, each hospital trained the federated model further on its own patients. The "
                f"personalised model stays at its hospital and was tested on its held-out patients. {summary}",
                "This step is charged to each hospital's ledger in addition to the rounds: “ε” is for this step alone, "
                "“ε with rounds” for the personalised model, in which the same patients took part twice.",
            ],
            tables=[
                ReportTable(
                    caption="AUC per patient on each hospital's held-out patients, 95 % intervals. The verdict needs "
                    "an interval of the difference that does not contain 0.",
                    columns=columns,
                    rows=rows,
                )
            ],
        )
    ]


def _row(one: Mapping[str, Any]) -> list[str]:
    if "code" in one:
        return ["–", "–", "–", "–", f"not personalised: {one['code'].replace('_', ' ')}", "–", "–"]
    difference = one["difference"]
    changed = (
        "–"
        if difference is None
        else f"{difference['value']:+.3f} ({difference['low']:+.3f} to {difference['high']:+.3f})"
    )
    return [
        f"{one['released']['patients']:,}",
        _auc_text(one["released"]),
        _auc_text(one["personalised"]),
        changed,
        str(one["verdict"]),
        epsilon_text(one["epsilon"], decimals=2),
        epsilon_text(one["epsilon_with_training"], decimals=2),
    ]


def _auc_text(figures: Mapping[str, Any]) -> str:
    if figures["auc"] is None:
        return "–"
    low, high = figures["auc_ci95"]
    return f"{figures['auc']:.3f} ({low:.3f}–{high:.3f})"
