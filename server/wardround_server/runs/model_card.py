"""A released model as the operator sees it: purpose, data, privacy guarantee, participating sites and missing replies.

All facts are read from the run's folder (`folder.py`), so that this page describes what actually happened. The card
that leaves with a model is made by `wardround.handover`; see `export.py`.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wardround.errors import ModelError, UsageError
from wardround.handover.card.content import NOTICE
from wardround.handover.card.figures import (
    NO_FIGURES,
    figures_heading,
    figures_lines,
    privacy_statement,
    promised_line,
    released_weights_line,
)
from wardround.storage.checkpoint import load_checkpoint
from wardround.study.describe import learns, network, reads
from wardround.text import count_text
from wardround.wire.reply_codes import code_text
from wardround_server.runs.folder import RunFolder, runs
from wardround_server.runs.paths import MODEL_FILE, RESULT_FILE


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """The card of one released model. `content` is plain JSON; see `card_of`."""

    content: Mapping[str, Any]

    @property
    def run(self) -> str:
        return self.content["run"]

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return dict(self.content)

    def to_text(self) -> str:
        """Return the card as Markdown."""
        return _markdown(self.content)


def released(server: Path) -> list[RunFolder]:
    """Return the runs that have released a model, the oldest first."""
    return [run for run in runs(server) if run.state() == "finished"]


def summary_of(run: RunFolder) -> dict[str, Any]:
    """Summarise a released model: run, study, architecture, epsilon, delta, rounds, finished_at, sha256.

    Raises `UsageError` if the run has released no model, and `ModelError` if one of its files is missing or damaged.
    """
    result, study = finished_result(run), run.study()
    return {
        "run": run.run_id,
        "study": study.study.name,
        "architecture": study.model.name,
        "epsilon": result["privacy"]["epsilon_promised"],
        "delta": result["privacy"]["delta"],
        "rounds": result["rounds_completed"],
        "finished_at": result.get("finished_at"),
        "sha256": hashlib.sha256(_bytes(run)).hexdigest(),
    }


def card_of(run: RunFolder) -> ModelCard:
    """Return the card after checking that the model file is intact and belongs to this study.

    Raises the errors of `summary_of`, and `ModelError` if the model belongs to another study.
    """
    result, study = finished_result(run), run.study()
    tensors, manifest = load_checkpoint(run.path / MODEL_FILE)
    if manifest.get("study_sha256") != study.sha256() or result["study_sha256"] != study.sha256():
        raise ModelError(
            f"{run.path / MODEL_FILE}: is not the model of this run's study; restore the folder from a backup"
        )
    counted = Counter(line["site"] for line in run.metrics() if line["code"] is None)
    content = {
        "schema": 1,
        "notice": NOTICE,
        **summary_of(run),
        "study_sha256": study.sha256(),
        "architecture_sha256": result["architecture_sha256"],
        "task": study.study.task,
        "labels": list(study.data.labels),
        "learns": learns(study),
        "data": reads(study),
        "network": network(study),
        "numbers": sum(int(array.size) for array in tensors.values()),
        "privacy": result["privacy"],
        "privacy_statement": privacy_statement(study.privacy.epsilon, study.privacy.delta),
        "sites": {
            site: {"rounds_counted": counted[site], "ledger": known["ledger"]}
            for site, known in sorted(result["sites"].items())
        },
        "missing": result["missing"],
        "federated_test": result.get("federated_test"),
        **({"released": result["released"]} if "released" in result else {}),
        "settings": json.loads(study.canonical()),
    }
    return ModelCard(content=content)


def finished_result(run: RunFolder) -> dict[str, Any]:
    """Return result.json of a finished run. Raises `UsageError` if it is not finished, `ModelError` if damaged."""
    try:
        result = run.result()
    except (OSError, ValueError):
        raise ModelError(f"{run.path / RESULT_FILE}: damaged; restore it from a backup") from None
    if result is None:
        raise UsageError(
            f"run {run.run_id} is {run.state()} and has released no model; see `wardround-server model list`"
        )
    return result


def _bytes(run: RunFolder) -> bytes:
    try:
        return (run.path / MODEL_FILE).read_bytes()
    except OSError as error:
        raise ModelError(
            f"{run.path / MODEL_FILE}: cannot be read: {error.strerror}; restore it from a backup"
        ) from None


def _markdown(card: Mapping[str, Any]) -> str:
    privacy, figures = card["privacy"], card["federated_test"]
    missing = [f"- round {one['round']}: {one['site']}, {code_text(one['code'])}" for one in card["missing"]]
    sites = [
        f"| {site} | {known['rounds_counted']} of {card['rounds']} | {_ledger(known['ledger'])} |"
        for site, known in card["sites"].items()
    ]
    lines = [
        f"# Model of the study {card['study']}",
        "",
        f"**{card['notice']}**",
        "",
        "| | |",
        "|---|---|",
        f"| run | `{card['run']}` |",
        f"| finished | {card['finished_at'] or 'unknown'} |",
        f"| study, SHA-256 | `{card['study_sha256']}` |",
        f"| network | {card['architecture']}, `{card['architecture_sha256'][:16]}…` |",
        f"| file, SHA-256 | `{card['sha256']}` |",
        "",
        "## What it is for",
        "",
        f"The model learned {card['learns']} ({card['task']}). Its network: {card['network']}; "
        f"{count_text(card['numbers'], 'number')} in total.",
        "",
        "## What it was trained on",
        "",
        f"At each site: {card['data']}. Images, names and individual scores never left the sites.",
        "",
        "## Privacy",
        "",
        promised_line(privacy),
        "",
        *(f"- {sentence}" for sentence in card["privacy_statement"]),
        "",
        "## Who took part",
        "",
        "| site | replies counted | ledger, as last seen |",
        "|---|---|---|",
        *sites,
        "",
        *(missing and ["Missing replies:", "", *missing] or ["No reply was missing in any round."]),
        "",
        "## Figures",
        "",
        *([line, ""] if (line := released_weights_line(card.get("released"))) else []),
        *_figures(card["task"], figures),
    ]
    return "\n".join(lines) + "\n"


def _ledger(head: Mapping[str, Any] | None) -> str:
    return "unknown" if head is None else f"{head['entries']} entries, `{head['sha256'][:16]}…`"


def _figures(task: str, figures: Mapping[str, Any] | None) -> list[str]:
    if figures is None:
        return [NO_FIGURES]
    return [figures_heading(figures), "", *(f"- {line}" for line in figures_lines(task, figures))]
