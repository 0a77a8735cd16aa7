"""`wardround-sim attack RUN`: every check and attack on one finished run, the verdict, and where it is written.

read the run -> checks of the system -> checks of the run's files -> canaries -> membership -> inversion
-> attack.json, `attack` in result.json, the section in report.html
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wardround.errors import UsageError
from wardround.tasks.classification.objective import reads_features
from wardround_server.runs.paths import RESULT_FILE
from wardround_simulation.attack import checks, run_files
from wardround_simulation.attack.canaries import CANARIES, SEEDS, Canaries, audit_canaries
from wardround_simulation.attack.inversion import Inversion, invert
from wardround_simulation.attack.membership import Attack, Membership, attack_run
from wardround_simulation.attack.system import Finding, System
from wardround_simulation.engine import in_process
from wardround_simulation.run.paths import ATTACK_FILE, SITES
from wardround_simulation.run.preflight import write_json

SCHEMA = 1
Stage = Callable[[str], None]
Pieces = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True, eq=False)
class AttackResult:
    """All that was found. `promised` is False for a run of epsilon = inf, which promises nothing that could break."""

    run_id: str
    study_sha256: str
    promised: bool
    phantoms: bool
    findings: tuple[Finding, ...]
    canaries: Canaries | None
    membership: Membership | None
    inversion: Inversion | None
    seeds: int
    seconds: float

    @property
    def verdict(self) -> str:
        """`FAIL` as soon as one check fails, `no privacy` where nothing was promised, else `pass`."""
        if any(finding.failed for finding in self.findings):
            return "FAIL"
        return "pass" if self.promised else "no privacy"

    def to_json(self) -> dict[str, Any]:
        """The content of attack.json, and of `attack` in result.json."""
        return {
            "schema": SCHEMA,
            "run_id": self.run_id,
            "study_sha256": self.study_sha256,
            "verdict": self.verdict,
            "checks": [asdict(finding) for finding in self.findings],
            "canaries": _canaries_json(self.canaries),
            "membership": _membership_json(self.membership),
            "inversion": _inversion_json(self.inversion),
            "seeds": self.seeds,
            "seconds": self.seconds,
        }


def attack_folder(
    folder: Path, *, seeds: int = SEEDS, canaries: int = CANARIES, stage: Stage, pieces: Pieces
) -> tuple[AttackResult, run_files.RunRecord]:
    """Attack the finished run in `folder` and this machine's system under its study. Writes nothing.

    Raises `UsageError` in one line where there is no finished run.
    """
    started = time.monotonic()
    run = run_files.read_run(folder)
    study, system = run.study, System()
    if study.study.task != "classification":
        raise UsageError(f"{folder}: attack is for runs of classification; this one is of {study.study.task}")
    if reads_features(study):
        torch.set_num_threads(
            1
        )  # small tensors: more threads wait for each other, five times the work on a busy machine
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
    stage("Guessing who was a member")
    events = max((site.events for site in run.sites.values()), key=lambda events: sum(one.steps for one in events))
    members = attack_run(study, hospitals, run.released, events)
    stage("Inverting one round's gradients")
    inverted = invert(system, study, hospitals, told=pieces)
    findings += [part.finding for part in (planted, members, inverted) if part is not None]
    result = AttackResult(
        run_id=str(run.result["run_id"]),
        study_sha256=study.sha256(),
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


def write_attack(run: run_files.RunRecord, result: AttackResult, show_images: bool) -> Path:
    """Write attack.json, add `attack` to result.json, put the section into report.html; each whole or not at all.
    Returns the report. Images are shown for phantoms, and else only where `show_images` says so.
    """
    from wardround_simulation.attack.report import put_section

    content = result.to_json()
    try:
        write_json(run.folder / ATTACK_FILE, content)
        report = put_section(run.folder, run.study, result, show_images or result.phantoms)
        write_json(run.folder / RESULT_FILE, {**run.result, "attack": content})
    except PermissionError as error:
        raise UsageError(f"{run.folder}: cannot be written: {error.strerror}") from None
    return report


def _canaries_json(found: Canaries | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {
        "canaries": found.canaries,
        "guesses": found.guesses,
        "right": [audit.right for audit in found.audits],
        "right_limit": found.right_limit,
        "epsilon_bounds": [audit.epsilon_bound for audit in found.audits],
        "epsilon_bound": found.epsilon_bound,
        "confidence": 0.95,
        "honest_band": [found.honest_low, found.honest_high],
        "honest_median": found.honest_median,
        "signal": found.signal,
        "signal_expected": found.signal_expected,
        "signal_limit": found.signal_limit,
        "epsilon_promised": found.promised,
        "delta": found.delta,
        "verdict": found.finding.verdict,
    }


def _membership_json(found: Membership | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {
        **_attack_json(found.released),
        "auc_limit": found.auc_limit,
        "true_positive_rate_limit": found.true_positive_rate_limit,
        "without_privacy": _attack_json(found.contrast) if found.contrast else None,
        "verdict": found.finding.verdict,
    }


def _attack_json(found: Attack) -> dict[str, Any]:
    return {
        "members": found.members,
        "others": found.others,
        "auc": found.auc,
        "auc_ci95": list(found.auc_ci95),
        "true_positive_rate_at_1_percent": found.true_positive_rate,
        "true_positive_rate_ci95": list(found.true_positive_rate_ci95),
    }


def _inversion_json(found: Inversion | None) -> dict[str, Any] | None:
    if found is None:
        return None
    ratios = {kind.replace(" ", "_"): [round(one, 2) for one in found.psnr[kind].tolist()] for kind in found.psnr}
    return {
        "psnr_db": ratios,
        "feature_error": None if found.feature_error is None else list(found.feature_error),
        "own_network": found.own_network,
        "verdict": found.finding.verdict,
    }
