"""The release gate opens for an attack report that keeps the bound of ε, and for nothing else."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from builders.handover import attack_report, write_report
from builders.runs import study_of

from wardround.errors import ReleaseRefusal, UsageError
from wardround.handover.release_gate import Decision, decide, read_report
from wardround.study.load import Study, parse_study

RUN, MODEL = "20261129-025118-ef82ad", "a" * 64
OTHER_RUN = "tiny-20261129-025118-ef82ad"


def decided(tmp_path: Path, report: dict, *, study: Study | None = None, run: str = OTHER_RUN, force: bool = False):
    evidence = read_report(write_report(tmp_path / "attack.json", report))
    return decide(study or study_of(), run, MODEL, evidence, force=force)


def changed(change: Callable[[dict], object]) -> dict:
    report = copy.deepcopy(attack_report(study_of(), RUN))
    change(report)
    return report


def test_a_report_of_the_same_study_opens_the_gate_and_says_that_it_is_of_another_run(tmp_path: Path) -> None:
    found = decided(tmp_path, attack_report(study_of(), RUN))
    assert not found.unsafe and found.attack is not None and found.attack["same_run"] is False
    assert found.attack["run"] == RUN and found.attack["canaries"]["epsilon_bound"] == 2.7


def test_a_report_of_the_same_run_must_be_of_the_same_model_file(tmp_path: Path) -> None:
    found = decided(tmp_path, attack_report(study_of(), RUN, model_sha256=MODEL), run=RUN)
    assert found.attack is not None and found.attack["same_run"] is True
    for other in (None, "b" * 64):
        with pytest.raises(UsageError, match="another model file"):
            decided(tmp_path, attack_report(study_of(), RUN, model_sha256=other), run=RUN, force=True)


def test_a_report_of_another_study_is_no_evidence_and_cannot_be_forced(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="another study"):
        decided(tmp_path, attack_report(study_of("other"), RUN), force=True)


def test_without_a_report_a_model_leaves_by_force_only() -> None:
    with pytest.raises(ReleaseRefusal, match="no attack report") as refused:
        decide(study_of(), RUN, MODEL, None, force=False)
    assert refused.value.exit_code == 3
    found = decide(study_of(), RUN, MODEL, None, force=True)
    assert found == Decision(reasons=found.reasons, attack=None) and found.unsafe


def fails(name: str) -> Callable[[dict], object]:
    return lambda report: next(one for one in report["checks"] if one["name"] == name).update(verdict="FAIL")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (fails("replay"), r"broken promise \(replay\)"),
        (lambda report: report.update(verdict="FAIL"), "verdict of the attack report is FAIL"),
        (lambda report: report["canaries"].update(epsilon_bound=8.01), "proves that ε is above 8.01, and 8 was"),
        (lambda report: report["canaries"].update(epsilon_bounds=[0, 0, 0, 0, 9.5]), "proves that ε is above 9.50"),
        (lambda report: report["canaries"].update(right=[95, 97, 107, 98, 93]), "recognised more often"),
        (lambda report: report["canaries"].update(signal=2.5), "signal of planted patients"),
        (lambda report: report["canaries"].update(signal=0.1), "signal of planted patients"),
        (lambda report: report["canaries"].update(epsilon_promised=80.0), "another ε or δ"),
        (lambda report: report["canaries"].update(delta=1e-2), "another ε or δ"),
        (lambda report: report["canaries"].update(canaries=50), "planted 50 patients in 5 audits"),
        (lambda report: report["canaries"].update(right=[95]), "planted 500 patients in 1 audits"),
        (lambda report: report.update(seeds=1), "the gate needs 500 in 5"),
        (lambda report: report.update(canaries=None), "incomplete"),
        (lambda report: report.update(checks=[]), r"incomplete \(without noise-size, canaries\)"),
        (lambda report: report["membership"].update(auc=0.95, auc_ci95=[0.9, 0.99]), "AUC 0.950, and ε allows 0.869"),
        (
            lambda report: report["membership"].update(
                true_positive_rate_at_1_percent=0.5, true_positive_rate_ci95=[0.4, 0.6]
            ),
            "50.0% of the members",
        ),
    ],
)
def test_a_report_that_breaks_a_bound_closes_the_gate(tmp_path: Path, change, reason: str) -> None:
    with pytest.raises(ReleaseRefusal, match=reason) as refused:
        decided(tmp_path, changed(change))
    assert "\n" not in str(refused.value) and "--force-unsafe" in str(refused.value)
    assert decided(tmp_path, changed(change), force=True).unsafe


def test_a_point_above_the_bound_by_chance_does_not_close_the_gate(tmp_path: Path) -> None:
    report = changed(lambda report: report["membership"].update(auc=0.88, auc_ci95=[0.8, 0.93]))
    assert not decided(tmp_path, report).unsafe


def test_a_study_without_privacy_never_opens_the_gate(tmp_path: Path) -> None:
    study = study_of(epsilon=math.inf)
    report = attack_report(study_of(), RUN, study_sha256=study.sha256(), canaries=None, verdict="no privacy")
    with pytest.raises(ReleaseRefusal, match="promises no privacy"):
        decided(tmp_path, report, study=study)


def test_a_task_without_an_attack_leaves_by_force_only() -> None:
    content = study_of().model_dump()
    content["study"]["task"] = "synthesis"
    content["model"].update(name="phantom-sampler", init="phantom", trainable="head")
    content["data"].update(image_size=64)
    with pytest.raises(ReleaseRefusal, match="no attack exists for synthesis"):
        decide(parse_study(content), RUN, MODEL, None, force=False)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", "[" * 100_000, '{"schema": 1}',
     json.dumps({**attack_report(study_of()), "canaries": {"right": 1}}),
     json.dumps({**attack_report(study_of()), "run_id": "a\x1b[31m"}), '{"schema": NaN}', "9" * 5_000_000],
)  # fmt: skip
def test_what_is_no_report_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "attack.json"
    path.write_text(text)
    with pytest.raises(UsageError, match="report of `wardround-sim attack`") as refused:
        read_report(path)
    assert "\n" not in str(refused.value) and "\x1b" not in str(refused.value)


def test_nan_in_a_bound_is_refused(tmp_path: Path) -> None:
    report = attack_report(study_of())
    report["canaries"]["epsilon_bound"] = math.nan  # json.dumps writes NaN
    with pytest.raises(UsageError, match="canaries.epsilon_bound is missing or wrong"):
        read_report(write_report(tmp_path / "attack.json", report))
