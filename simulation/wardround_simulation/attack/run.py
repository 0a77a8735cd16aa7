"""`wardround-sim attack RUN`: run every check and attack on one finished run, and write the results.

read the run -> checks of the system -> checks of the run's files -> canaries -> membership -> inversion
-> attack.json, `attack` in result.json, the section in report.html
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from wardround.errors import UsageError
from wardround.identity import sha256_hex
from wardround.storage.disk_errors import unwritable
from wardround.tasks import TASKS
from wardround.tasks.labelled.objective import reads_features
from wardround.tasks.registry import commands_of
from wardround_client.sources.registry import source_of
from wardround_server.runs.paths import MODEL_FILE, RESULT_FILE
from wardround_simulation.attack import checks, run_files
from wardround_simulation.attack.canaries import CANARIES, CANARIES_ASK, SEEDS, audit_canaries
from wardround_simulation.attack.inversion import INVERSION_ASKS, invert
from wardround_simulation.attack.membership import MEMBERSHIP_ASKS, attack_run
from wardround_simulation.attack.result import AttackResult
from wardround_simulation.attack.system import Finding, System
from wardround_simulation.engine import in_process
from wardround_simulation.run.paths import ATTACK_FILE, SITES
from wardround_simulation.run.preflight import write_json

Stage = Callable[[str], None]
Pieces = Callable[[int, int], None]


def attack_folder(
    folder: Path, *, seeds: int = SEEDS, canaries: int = CANARIES, stage: Stage, pieces: Pieces
) -> tuple[AttackResult, run_files.RunRecord]:
    """Attack the finished run in `folder`, and the installed product under the run's study. Writes nothing.

    Raises:
        UsageError: If `folder` contains no finished run, or its study is not a classification (a one-line message).
    """
    started = time.monotonic()
    run = run_files.read_run(folder)
    study, system = run.study, System()
    if not commands_of(study.study.task).attack:
        known = ", ".join(task for task in TASKS if commands_of(task).attack)
        raise UsageError(f"{folder}: attack supports runs of {known}; this is a run of {study.study.task}")
    if reads_features(study):
        # Small tensors: more threads wait for each other, and take five times the work on a busy machine.
        torch.set_num_threads(1)
    hospitals = in_process.open_hospitals({name: folder / SITES / name for name in run.sites}, study)
    stage("Checking the system's parts")
    findings = []
    for number, check in enumerate(checks.CHECKS):
        findings.append(check(system, study, seed=number))
        pieces(number + 1, len(checks.CHECKS))
    stage("Checking the run's files")
    findings.append(run_files.replay(study, run.sites))
    findings.append(run_files.plan_kept(run))
    findings.append(run_files.sent_noise(run, hospitals))
    findings.append(run_files.sent_mean(run))
    stage("Planting canaries")
    planted = audit_canaries(system, study, canaries, seeds, pieces)
    stage("Guessing which patients took part")
    events = max((site.events for site in run.sites.values()), key=lambda events: sum(one.steps for one in events))
    members = attack_run(study, hospitals, run.released, events)
    inverted, why = None, "rows of this study are no images"
    if source_of(study.data).SHOWS_IMAGES:
        stage("Rebuilding images from one round's gradients")
        inverted = invert(system, study, hospitals, progress=pieces)
        why = "too few training patients"
    findings += [
        planted.finding if planted else _left_out("canaries", CANARIES_ASK, "the study promises no privacy: ε = ∞"),
        members.finding if members else _left_out("membership", MEMBERSHIP_ASKS, "no patient is held out"),
        inverted.finding if inverted else _left_out("inversion", INVERSION_ASKS, why),
    ]
    result = AttackResult(
        run_id=str(run.result["run_id"]),
        study_sha256=study.sha256(),
        model_sha256=sha256_hex((folder / MODEL_FILE).read_bytes()),
        promised=bool(np.isfinite(study.privacy.epsilon)),
        phantoms=run.phantoms,
        findings=tuple(findings),
        canaries=planted,
        membership=members,
        inversion=inverted,
        seeds=seeds,
        seconds=round(time.monotonic() - started, 1),
    )
    return result, run


def _left_out(name: str, question: str, why: str) -> Finding:
    return Finding(name=name, question=question, measured=why, limit="–", verdict="does not apply")


def write_attack(run: run_files.RunRecord, result: AttackResult, show_images: bool) -> Path:
    """Write attack.json, add the section to report.html and `attack` to result.json, each file atomically.

    The section shows images if the run used phantoms or `show_images` is set.

    Returns:
        The path of the report.

    Raises:
        UsageError: If the folder cannot be written.
    """
    from wardround_simulation.attack.report import put_section

    content = result.to_json()
    try:
        write_json(run.folder / ATTACK_FILE, content)
        report = put_section(run.folder, run.study, result, show_images or result.phantoms)
        write_json(run.folder / RESULT_FILE, {**run.result, "attack": content})
    except OSError as error:
        raise unwritable(run.folder, error) from None
    return report
