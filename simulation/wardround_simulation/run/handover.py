"""Hand over the model of a finished simulated run."""

from __future__ import annotations

import json
import time
from pathlib import Path

from wardround.errors import UsageError
from wardround.handover.export import Exported, export_model
from wardround.handover.record import RunFacts
from wardround.storage.text_file import path_text
from wardround.study.load import study_from_json
from wardround_server.runs.metrics_log import read_lines
from wardround_server.runs.paths import METRICS_FILE, MODEL_FILE, RESULT_FILE, STUDY_FILE
from wardround_simulation.run.paths import ATTACK_FILE, CLAIM_FILE


def export_folder(folder: Path, target: Path, *, attack: Path | None, force: bool, license: str) -> Exported:
    """Export the model of the run in `folder`.

    Args:
        folder: The --out folder of a finished run.
        target: The folder to create.
        attack: The attack report; None takes attack.json of the run if it is there.
        force: Export although the release gate is closed.
        license: The SPDX name of the model's licence, or `other`.

    Raises:
        WardroundError: As `export_model` does, or `folder` has no finished run.
    """
    facts = facts_of_folder(folder)
    own = folder / ATTACK_FILE
    evidence = own if attack is None and own.is_file() else attack
    return export_model(facts, folder / MODEL_FILE, target, attack=evidence, force=force, license=license)


def facts_of_folder(folder: Path) -> RunFacts:
    """Return the facts of a finished run. Raises a one-line `UsageError` if there is none."""
    where = path_text(folder)
    if not (folder / CLAIM_FILE).is_file():
        raise UsageError(f"{where}: contains no run; give the --out folder of a finished run")
    if not (folder / RESULT_FILE).is_file():
        raise UsageError(f"{where}: the run is not finished; run its `wardround-sim run` command again to continue it")
    try:
        result = json.loads((folder / RESULT_FILE).read_text(encoding="utf-8"))
        study = study_from_json((folder / STUDY_FILE).read_text(encoding="utf-8"), path_text(folder / STUDY_FILE))
        run = str(result["run_id"])
        written = time.gmtime((folder / MODEL_FILE).stat().st_mtime)  # for a run of a version without `finished_at`
        created = str(result.get("finished_at") or time.strftime("%Y-%m-%dT%H:%M:%SZ", written))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{where}: its result, study or model cannot be read ({type(error).__name__}); give the complete folder"
        ) from None
    if result.get("study_sha256") != study.sha256():
        raise UsageError(f"{where}: result.json is not that of the study in study.json")
    return RunFacts(
        run=run,
        kind="simulation",
        study=study,
        result=result,
        metrics=read_lines(folder / METRICS_FILE),
        created=created,
    )
