"""The release gate: a model leaves only with an attack report whose figures keep the bound that its ε implies.

The evidence is attack.json, which `wardround-sim attack RUN` writes. It belongs to a model in one of two ways:

- **same run**: the report is of the run that made the model. Only a simulation can have one, because the attacks need
  the hospitals' data. The report names the hash of the model file that it attacked.
- **same study**: the report is of a simulated run of the same study, by its SHA-256. It tests the mechanism: planted
  patients go through the same sampling, clipping, noise and number of rounds, and the privacy of these does not depend
  on whose images are trained on. A model of a real federation can only have this kind, and its card says so.

The report's own verdict is not enough: its figures are compared with its bounds again, and an attack with fewer planted
patients or audits than the command's default does not open the gate.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from wardround.errors import ReleaseRefusal, UsageError
from wardround.handover.package import Digest, Line, printable
from wardround.identity import sha256_hex
from wardround.printable import escaped
from wardround.storage.disk_errors import cause
from wardround.storage.json_numbers import json_number
from wardround.storage.text_file import path_text
from wardround.study.load import Study
from wardround.tasks.registry import commands_of
from wardround.text import epsilon_text

MOST_REPORT_BYTES = 4 * 2**20
LEAST_CANARIES, LEAST_SEEDS = 500, 5  # the defaults of `wardround-sim attack`
NEEDED_CHECKS = ("noise-size", "canaries")  # without them a report of a private study shows nothing

Prose = Annotated[str, Field(max_length=1000), AfterValidator(printable)]
Verdict = Literal["pass", "FAIL", "does not apply"]
Share = Annotated[float, Field(ge=0, le=1)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, allow_inf_nan=False)


class _Check(_Part):
    name: Line
    measured: Prose
    limit: Prose
    verdict: Verdict


class _Canaries(_Part):
    canaries: int
    right: list[int]
    right_limit: float
    epsilon_bound: float
    epsilon_bounds: list[float]
    signal: float
    signal_expected: float
    signal_limit: float
    epsilon_promised: float
    delta: float
    verdict: Verdict


class _Membership(_Part):
    auc: Share
    auc_ci95: Annotated[list[Share], Field(min_length=2, max_length=2)]
    auc_limit: Share
    true_positive_rate_at_1_percent: Share
    true_positive_rate_ci95: Annotated[list[Share], Field(min_length=2, max_length=2)]
    true_positive_rate_limit: Share
    verdict: Verdict


class _Inversion(_Part):
    verdict: Verdict


class AttackReport(_Part):
    """The part of attack.json that the gate and the card read (docs/files.md)."""

    schema_: Literal[1] = Field(alias="schema")
    run_id: Line
    study_sha256: Digest
    model_sha256: Digest | None = None
    verdict: Literal["pass", "FAIL", "no privacy"]
    checks: Annotated[list[_Check], Field(max_length=100)]
    canaries: _Canaries | None
    membership: _Membership | None
    inversion: _Inversion | None
    seeds: int


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """An attack report and the SHA-256 of its file."""

    report: AttackReport
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What the gate decided: the reasons why it is closed (none: it is open), and the attack's summary for model.json.

    `unsafe` is True if the gate is closed and the operator forced the export.
    """

    reasons: tuple[str, ...]
    attack: Mapping[str, Any] | None

    @property
    def unsafe(self) -> bool:
        return bool(self.reasons)


def read_report(path: Path) -> Evidence:
    """Read attack.json. Raises a one-line `UsageError` if it is missing or not a report of this version."""
    where = path_text(path)
    try:
        with open(path, "rb") as file:
            content = file.read(MOST_REPORT_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{where}: cannot be read: {cause(error)}") from None
    if len(content) > MOST_REPORT_BYTES:
        raise UsageError(f"{where}: too long for a report of `wardround-sim attack`")
    try:
        report = AttackReport.model_validate(json.loads(content))
    except ValidationError as error:
        place = ".".join(escaped(str(part)[:64]) for part in error.errors()[0]["loc"]) or "its content"
        raise UsageError(f"{where}: not a report of `wardround-sim attack`: {place} is missing or wrong") from None
    except (ValueError, RecursionError):
        raise UsageError(f"{where}: not a report of `wardround-sim attack`: it is not JSON") from None
    return Evidence(report=report, sha256=sha256_hex(content))


def decide(study: Study, run_id: str, model_sha256: str, evidence: Evidence | None, *, force: bool) -> Decision:
    """Decide whether a model may leave.

    Args:
        study: The study of the model.
        run_id: The run that made the model.
        model_sha256: The SHA-256 of model.safetensors.
        evidence: The attack report, if there is one.
        force: Whether the operator gave `--force-unsafe`.

    Raises:
        UsageError: The report is of another study or another model file; it is no evidence, and cannot be forced.
        ReleaseRefusal: The gate is closed, and `force` is False.
    """
    if evidence is None:
        attackable = commands_of(study.study.task).attack
        why = "there is no attack report" if attackable else f"no attack exists for {study.study.task}"
        reasons: tuple[str, ...] = (f"{why}, so what the model reveals about patients was not tested",)
        summary = None
    else:
        same_run = _belongs(study, run_id, model_sha256, evidence)
        reasons = tuple(_faults(study, evidence.report))
        summary = _summary(evidence, same_run)
    if reasons and not force:
        way = "give one with --attack FILE; " if evidence is None and commands_of(study.study.task).attack else ""
        raise ReleaseRefusal(f"the release gate is closed: {'; '.join(reasons)}; {way}--force-unsafe exports it anyway")
    return Decision(reasons=reasons, attack=summary)


def _belongs(study: Study, run_id: str, model_sha256: str, evidence: Evidence) -> bool:
    """Return whether the report is of this very run. Raises `UsageError` if it belongs to another model."""
    report = evidence.report
    if report.study_sha256 != study.sha256():
        raise UsageError(
            f"the attack report is of another study ({report.study_sha256[:12]}…, not {study.sha256()[:12]}…); "
            "attack a run of the same study"
        )
    if report.run_id != run_id:
        return False
    if report.model_sha256 != model_sha256:
        raise UsageError("the attack report is of another model file of this run, or older; attack the run again")
    return True


def _faults(study: Study, report: AttackReport) -> Iterator[str]:
    """Yield the reasons why a report does not open the gate, each a clause."""
    failed = [check.name for check in report.checks if check.verdict == "FAIL"]
    if failed:
        yield f"the attack found a broken promise ({', '.join(failed)})"
    if math.isinf(study.privacy.epsilon):
        yield "the study promises no privacy (ε = ∞)"
        return
    names = {check.name for check in report.checks}
    missing = [name for name in NEEDED_CHECKS if name not in names]
    if missing or report.canaries is None:
        yield f"the attack report is incomplete (without {', '.join(missing) or 'canaries'})"
        return
    yield from _canary_faults(study, report, report.canaries)
    yield from _membership_faults(report.membership)
    if report.verdict != "pass" and not failed:
        yield f"the verdict of the attack report is {report.verdict}"


def _canary_faults(study: Study, report: AttackReport, found: _Canaries) -> Iterator[str]:
    if (found.epsilon_promised, found.delta) != (study.privacy.epsilon, study.privacy.delta):
        yield "the attack tested another ε or δ than the study promises"
    if found.canaries < LEAST_CANARIES or report.seeds < LEAST_SEEDS or len(found.right) < LEAST_SEEDS:
        yield (
            f"the attack planted {found.canaries} patients in {len(found.right)} audits; the gate needs "
            f"{LEAST_CANARIES} in {LEAST_SEEDS}"
        )
    bound = max([found.epsilon_bound, *found.epsilon_bounds])
    if bound > study.privacy.epsilon:
        promised = epsilon_text(study.privacy.epsilon)
        yield f"the attack proves that ε is above {bound:.2f}, and {promised} was promised"
    if any(right > found.right_limit for right in found.right):
        yield "planted patients were recognised more often than the noise allows"
    if abs(found.signal - found.signal_expected) > found.signal_limit:
        yield "the signal of planted patients is not that of a correct system"


def _membership_faults(found: _Membership | None) -> Iterator[str]:
    """Compare the lower ends of intervals with what theory allows, which a point estimate may exceed by chance."""
    if found is None:
        return
    if found.auc_ci95[0] > found.auc_limit:
        yield f"members are recognised with AUC {found.auc:.3f}, and ε allows {found.auc_limit:.3f}"
    if found.true_positive_rate_ci95[0] > found.true_positive_rate_limit:
        yield (
            f"{found.true_positive_rate_at_1_percent:.1%} of the members are recognised at 1 % false alarms, and ε "
            f"allows {found.true_positive_rate_limit:.1%}"
        )


def _summary(evidence: Evidence, same_run: bool) -> dict[str, Any]:
    report = evidence.report
    canaries, membership = report.canaries, report.membership
    return {
        "same_run": same_run,
        "run": report.run_id,
        "report_sha256": evidence.sha256,
        "verdict": report.verdict,
        "seeds": report.seeds,
        "checks": [check.model_dump() for check in report.checks],
        "canaries": canaries
        and {
            "canaries": canaries.canaries,
            "epsilon_bound": canaries.epsilon_bound,
            "epsilon_promised": json_number(canaries.epsilon_promised),
        },
        "membership": membership
        and {
            "auc": membership.auc,
            "auc_ci95": membership.auc_ci95,
            "auc_limit": membership.auc_limit,
            "true_positive_rate_at_1_percent": membership.true_positive_rate_at_1_percent,
            "true_positive_rate_limit": membership.true_positive_rate_limit,
        },
    }
