"""Hand over the model of a run: export it to a folder, and list all models with version, lineage and stage.

stage             what happened to the model
released          the run is finished; the model has not left the server
exported          it left through the open release gate
exported unsafe   it left with --force-unsafe, at least once
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from wardround.errors import ModelError, WardroundError
from wardround.handover.export import Exported, export_model
from wardround.handover.package import MODEL_FILE as PACKAGED_MODEL
from wardround.handover.record import RunFacts
from wardround.storage import jsonl
from wardround.storage.disk_errors import writing
from wardround.study.schema import ModelSection
from wardround_server.runs.audit import RunRecord
from wardround_server.runs.folder import RunFolder
from wardround_server.runs.model_card import card_of, finished_result, released, summary_of
from wardround_server.runs.paths import EXPORTS_FILE, MODEL_FILE

RELEASED, EXPORTED, UNSAFE = "released", "exported", "exported unsafe"


def export_run(
    run: RunFolder, target: Path, *, attack: Path | None, force: bool, license: str, who: str | None
) -> Exported:
    """Export the model of a run and record it in the audit log and in the run's folder.

    The export is recorded before the folder gets its name, so that no model leaves without an entry.

    Raises:
        WardroundError: As `export_model` does, or the run has released no model.
    """
    card_of(run)  # raises if the model is damaged or belongs to another study
    facts = facts_of_run(run)

    def record(content: dict[str, Any]) -> None:
        sha256 = content["files"][PACKAGED_MODEL]["sha256"]
        RunRecord(run, facts.study).exported(sha256, content["unsafe"], who)
        line = {"at": time.time(), "sha256": sha256, "unsafe": content["unsafe"], "who": who}
        with writing(run.path / EXPORTS_FILE):
            jsonl.trim_lines(run.path / EXPORTS_FILE, _exports(run))
            jsonl.append_lines(run.path / EXPORTS_FILE, [line])

    return export_model(
        facts, run.path / MODEL_FILE, target, attack=attack, force=force, license=license, before_release=record
    )


def facts_of_run(run: RunFolder) -> RunFacts:
    """Return the facts of a finished run. Raises `UsageError` if it is not finished."""
    result = finished_result(run)
    return RunFacts(
        run=run.run_id,
        kind="federation",
        study=run.study(),
        result=result,
        metrics=run.metrics(),
        created=result.get("finished_at") or "unknown",
    )


def models(server: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return all released models, the oldest first, and the run and the fault of each damaged one.

    A model has the fields of `summary_of`, its `version` (1 for the first model of studies of this name), `start` and
    `stage`.
    """
    found, damaged = [], []
    for run in released(server):
        try:
            found.append({**summary_of(run), "stage": stage_of(run), "init": run.study().model})
        except WardroundError as error:
            damaged.append({"run": run.run_id, "fault": str(error)})
    versions: Counter[str] = Counter()
    for one in found:
        versions[one["study"]] += 1
        one["version"] = versions[one["study"]]
    for one in found:
        one["start"] = start_of(one.pop("init"), found)
    return found, damaged


def start_of(model: ModelSection, others: Iterable[dict[str, Any]]) -> str:
    """Return what a study's network started from: public weights, or the run whose model the study names by hash."""
    if model.init_sha256 is None:
        return {"phantom": "phantom weights", "random": "random weights"}[model.init]
    parents = [one["run"] for one in others if one["sha256"] == model.init_sha256]
    return parents[0] if parents else f"file {model.init_sha256[:16]}…"


def stage_of(run: RunFolder) -> str:
    """Return the stage of a released model. Raises `ModelError` if exports.jsonl is damaged."""
    lines = _exports(run)
    if not lines:
        return RELEASED
    return UNSAFE if any(line.get("unsafe") is not False for line in lines) else EXPORTED


def _exports(run: RunFolder) -> list[dict[str, Any]]:
    try:
        return jsonl.read_lines(run.path / EXPORTS_FILE)
    except ValueError as error:
        raise ModelError(f"{run.path / EXPORTS_FILE}: {error}; restore the file from a backup") from None
