"""A released model and its card: purpose, training data, privacy guarantee, participating sites and missing replies.

All facts are read from the run's folder (`folder.py`), so that a card describes what actually happened. `written`
exports the model file byte for byte, with the card beside it, and never overwrites a file.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wardround.errors import ModelError, UsageError, WardroundError
from wardround.storage.atomic import fsync, owner_only
from wardround.storage.checkpoint import load_checkpoint
from wardround.storage.disk_errors import cause
from wardround.storage.folders import make_folder
from wardround.study.describe import learns, network, reads
from wardround.tasks.registry import release_part
from wardround.text import count_text, epsilon_of, epsilon_text, promise
from wardround.wire.reply_codes import code_text
from wardround_server.runs.folder import RunFolder, runs
from wardround_server.runs.paths import MODEL_FILE, RESULT_FILE

NOTICE = "Research software, not a medical device: not for diagnosis or treatment."
CARD, CARD_JSON = "model-card.md", "model-card.json"


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
    result, study = _result(run), run.study()
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
    result, study = _result(run), run.study()
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


def privacy_statement(epsilon: float, delta: float) -> list[str]:
    """Return the privacy guarantee of the model for a patient, or the lack of one, as sentences."""
    if math.isinf(epsilon):
        return ["No privacy: this model was trained without noise, and nothing bounds what it reveals about a patient."]
    return [
        *promise(epsilon, delta),
        "Settings of the study that were chosen by looking at private data are not covered by this epsilon.",
    ]


def written(card: ModelCard, run: RunFolder, target: Path) -> list[Path]:
    """Write the model and its card to `target`, a folder or FILE.safetensors; return the files.

    Raises `UsageError` if one of the files exists already; then nothing is written. Raises `WardroundError` if a file
    cannot be written; then no file is left behind.
    """
    if target.suffix == ".safetensors":
        model, text, plain = target, target.with_suffix(".md"), target.with_suffix(".json")
    else:
        model, text, plain = target / MODEL_FILE, target / CARD, target / CARD_JSON
    contents = {
        model: _bytes(run),
        text: card.to_text().encode(),
        plain: (json.dumps(card.to_json(), indent=1) + "\n").encode(),
    }
    there = [str(path) for path in contents if os.path.lexists(path)]
    if there:
        raise UsageError(f"{', '.join(there)}: already exists and is not overwritten; choose another name")
    made: list[Path] = []
    try:
        make_folder(model.parent)
        for path, content in contents.items():
            with open(path, "xb", opener=owner_only) as file:  # not `write_file`, which would replace a file
                made.append(path)
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        fsync(model.parent)
    except OSError as error:
        for path in made:
            path.unlink(missing_ok=True)
        raise WardroundError(f"{error.filename or target}: cannot be written: {cause(error)}") from None
    return made


def _result(run: RunFolder) -> dict[str, Any]:
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
        f"Promised: ε {epsilon_text(privacy['epsilon_promised'])} at δ {privacy['delta']:g}, for each "
        f"{privacy['unit']} of each site ({privacy['relation']}).",
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
        *_released_weights(card.get("released")),
        *_figures(card["task"], figures),
    ]
    return "\n".join(lines) + "\n"


def _ledger(head: Mapping[str, Any] | None) -> str:
    return "unknown" if head is None else f"{head['entries']} entries, `{head['sha256'][:16]}…`"


def _released_weights(which: str | None) -> list[str]:
    """Describe the weights in the file, for a task that may release its public start instead of the trained model."""
    texts = {
        "trained": "The file contains the weights that the sites trained.",
        "start": "The file contains the public start weights and nothing that the sites trained.",
    }
    return [texts[which], ""] if which else []


def _figures(task: str, figures: Mapping[str, Any] | None) -> list[str]:
    if figures is None:
        return ["None: the study asked the sites for no figures about held-out patients."]
    epsilon = epsilon_of(figures["epsilon"])
    cost = f"noised counts, ε {epsilon_text(epsilon)} for each of them" if math.isfinite(epsilon) else "no privacy"
    sites = ", ".join(figures["sites"]) or "no site"
    release = release_part(task)
    return [
        f"About {figures['patients_noised']} held-out patients of {sites} ({cost}):",
        "",
        *release.card_lines(figures),
        *(_scores(figures) if release.SCORES_LABELS else _patients_of_sites(figures)),
        *(f"- {one['site']} released none: {code_text(one['code'])}" for one in figures["missing"]),
    ]


def _patients_of_sites(figures: Mapping[str, Any]) -> list[str]:
    return [
        f"- {site} alone: about {one['patients_noised']} patients"
        for site, one in sorted(figures.get("per_site", {}).items())
    ]


def _scores(figures: Mapping[str, Any]) -> list[str]:
    """Return lines with the AUC, pooled and of each site that allows it, and sensitivity at fixed specificities."""
    return [
        f"- all together: {_auc(figures)}",
        *(f"- {site} alone: {_auc(one)}" for site, one in sorted(figures.get("per_site", {}).items())),
        *(
            f"- sensitivity {row['sensitivity']:.3f} ({row['low']:.3f}–{row['high']:.3f}) at "
            f"{row['specificity']:.0%} specificity"
            for row in figures["thresholds"]
        ),
    ]


def _auc(figures: Mapping[str, Any]) -> str:
    if figures["auc"] is None:
        return "no AUC, because the noise is too large compared with the counts"
    low, high = figures["auc_ci95"]
    return f"AUC {figures['auc']:.3f} (95 %: {low:.3f}–{high:.3f})"
