"""Loss of a ledger's newest copy: once the loss is accepted, the ledger never charges less than was spent."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from wardround.errors import AuditError, BudgetRefusal, LedgerError, PolicyRefusal, UsageError
from wardround.records.audit_events import ReplyReleased
from wardround.records.audit_log import AUDIT_FILE, AuditLog, verified
from wardround.study.load import Study, parse_study
from wardround.wire.protocol import EVALUATE, TRAIN
from wardround_client.cli.main import app
from wardround_client.ledger.file import LedgerFile
from wardround_client.ledger.ledger import Cap, Ledger
from wardround_client.ledger.recovery import accept_loss, loss_of
from wardround_client.privacy.plan import plan_from_study
from wardround_client.studies.store import store_approved

CAP = Cap(epsilon=8.0, delta=1e-4)
FILES = ("ledger.sqlite3", "ledger.head")
KINDS = ("witness newer", "both old", "ledger gone")


def a_study(name: str, epsilon: float) -> Study:
    return parse_study(
        {
            "study": {"name": name, "rounds": 4, "spare_rounds": 1},
            "data": {"labels": ["benign", "malignant"]},
            "privacy": {"epsilon": epsilon, "delta": 1e-4, "max_grad_norm": 1.0, "nominal_patients": 10},
            "aggregation": {"nominal_sites": 1},
            "evaluation": {"epsilon": 0.1},
        }
    )


FIRST, SECOND, THIRD = a_study("first", 3.0), a_study("second", 1.5), a_study("third", 1.0)


def trained(folder: Path, study: Study, run: str, number: int, purpose: str = TRAIN) -> None:
    """An attempt, settled and sent."""
    ledger, sha256 = Ledger(folder / "ledger.sqlite3"), study.sha256()
    ledger.hold(sha256, run, plan_from_study(study), CAP)
    ledger.settle(ledger.reserve(sha256, run, number, "w", purpose, cap=CAP), "a" * 64)
    left = {"study": sha256, "run": run, "round": number, "purpose": purpose, "reply": "a" * 64}
    AuditLog(folder / AUDIT_FILE).append(ReplyReleased(**left))
    ledger.close()


@pytest.fixture(params=KINDS)
def lost(request, tmp_path: Path) -> tuple[Path, float, str]:
    """A site with an older copy of its ledger, or none; what was really spent, and how the copy is wrong."""
    (tmp_path / "site.toml").write_text('name = "h"\n[privacy]\nepsilon_cap = 8.0\ndelta_cap = 1e-4\n')
    for study in (FIRST, SECOND, THIRD):
        store_approved(tmp_path, study)
    trained(tmp_path, FIRST, "run-1", 1)
    for name in FILES:
        shutil.copy2(tmp_path / name, tmp_path / f"{name}.old")
    for number in (2, 3, 4):
        trained(tmp_path, FIRST, "run-1", number)
    trained(tmp_path, FIRST, "run-1", 5, EVALUATE)
    trained(tmp_path, SECOND, "run-2", 1)
    trained(tmp_path, SECOND, "run-2", 2)
    truth = Ledger(tmp_path / "ledger.sqlite3").spent(1e-4).value
    for name in FILES:
        shutil.copy2(tmp_path / name, tmp_path / f"{name}.newest")
    if request.param == "ledger gone":
        (tmp_path / "ledger.sqlite3").unlink()
    else:
        shutil.copy2(tmp_path / "ledger.sqlite3.old", tmp_path / "ledger.sqlite3")
    if request.param == "both old":
        shutil.copy2(tmp_path / "ledger.head.old", tmp_path / "ledger.head")
    return tmp_path, truth, request.param


def seen(kind: str) -> int:
    return 99 if kind == "both old" else 0


def test_after_an_accepted_loss_no_less_is_charged_than_was_spent_and_no_more_than_was_held(lost) -> None:
    folder, truth, kind = lost
    if kind != "both old":
        with pytest.raises(LedgerError):
            Ledger(folder / "ledger.sqlite3")
    ledger = accept_loss(folder, loss_of(folder, seen(kind), ()), "Ada Lovelace")
    plans = [plan_from_study(study) for study in (FIRST, SECOND)]
    held = Ledger(None)
    for number, plan in enumerate(plans):
        held.hold("a" * 64, f"{number}", plan, CAP, runs=len(plans))
    assert truth < ledger.spent(1e-4).value == ledger.committed(1e-4).value == pytest.approx(held.committed(1e-4).value)
    assert Ledger(folder / "ledger.sqlite3").verify() == ledger.head()
    entry = verified(folder / AUDIT_FILE).entries[-1]
    assert (entry["event"], entry["who"]) == ("loss-accepted", "Ada Lovelace") and entry["count"] > 0


def test_its_runs_train_no_more_and_a_new_one_only_within_what_is_left(lost) -> None:
    folder, _, kind = lost
    ledger = accept_loss(folder, loss_of(folder, seen(kind), ()), "Ada Lovelace")
    for study, run in ((FIRST, "run-1"), (SECOND, "run-2")):
        ledger.hold(study.sha256(), run, plan_from_study(study), CAP)
        with pytest.raises(BudgetRefusal, match="released by Ada Lovelace"):
            ledger.reserve(study.sha256(), run, 4, "w", cap=CAP)
        with pytest.raises(PolicyRefusal, match="begun: 1"):
            ledger.hold(study.sha256(), "another", plan_from_study(study), CAP)
    tight = Cap(epsilon=ledger.spent(1e-4).value + 0.01, delta=1e-4)
    with pytest.raises(BudgetRefusal, match="of its cap of epsilon"):
        ledger.hold(THIRD.sha256(), "run-3", plan_from_study(THIRD), tight)
    ledger.hold(THIRD.sha256(), "run-3", plan_from_study(THIRD), CAP)
    assert ledger.reserve(THIRD.sha256(), "run-3", 1, "w", cap=CAP) > 0


def test_a_run_that_a_person_names_is_charged_too_and_an_unknown_study_is_no_run(lost) -> None:
    folder, _, kind = lost
    loss = loss_of(folder, seen(kind), [(THIRD.sha256()[:12], "run-3")])
    assert (THIRD.sha256(), "run-3") in loss.unknown
    ledger = accept_loss(folder, loss, "Ada Lovelace")
    assert [hold.used[TRAIN] for hold in ledger.holds()] == [5, 5, 5]
    with pytest.raises(UsageError, match="no study here has this hash"):
        loss_of(folder, 10**6, [("f" * 12, "run-4")])


@pytest.mark.parametrize("step", [(Ledger, "accept_loss"), (LedgerFile, "forget")])
def test_a_kill_on_the_way_leaves_a_ledger_that_refuses_and_the_same_call_finishes(lost, monkeypatch, step) -> None:
    folder, truth, kind = lost

    class Killed(BaseException):
        pass

    def killed(*args: object) -> None:
        raise Killed

    loss = loss_of(folder, seen(kind), ())
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(*step, killed)
        accept_loss(folder, loss, "Ada Lovelace")
    if kind != "both old":
        with pytest.raises(LedgerError):
            Ledger(folder / "ledger.sqlite3")
    ledger = accept_loss(folder, loss_of(folder, seen(kind), ()), "Ada Lovelace")
    assert truth < ledger.spent(1e-4).value < 5.0 and [hold.used[TRAIN] for hold in ledger.holds()] == [5, 5]
    assert Ledger(folder / "ledger.sqlite3").verify() == ledger.head()


def test_a_newest_copy_that_turns_up_later_is_another_history(lost) -> None:
    folder, _, kind = lost
    accept_loss(folder, loss_of(folder, seen(kind), ()), "Ada Lovelace")
    shutil.copy2(folder / "ledger.sqlite3.newest", folder / "ledger.sqlite3")
    with pytest.raises(LedgerError, match="a different history"):
        Ledger(folder / "ledger.sqlite3")


def test_nobody_accepts_a_loss_that_nothing_shows_or_without_the_log_of_what_left(lost) -> None:
    folder, _, kind = lost
    if kind == "both old":
        with pytest.raises(UsageError, match="no sign of a loss: it ends at entry 4.*--entries"):
            loss_of(folder, 4, ())
    with pytest.raises(UsageError, match="the name of a person"):
        accept_loss(folder, loss_of(folder, seen(kind), ()), "root1")
    lines = (folder / AUDIT_FILE).read_bytes().splitlines(keepends=True)
    (folder / AUDIT_FILE).write_bytes(b"".join(lines[:-2]))
    with pytest.raises(AuditError):
        loss_of(folder, seen(kind), ())
    (folder / AUDIT_FILE).unlink()
    with pytest.raises(UsageError, match="is missing as well"):
        loss_of(folder, seen(kind), ())


def test_the_command_asks_and_says_what_it_charged(lost) -> None:
    folder, truth, kind = lost
    words = ["ledger", "accept-loss", "--by", "Ada Lovelace", "--entries", str(seen(kind)), "--site", str(folder)]
    refused = CliRunner().invoke(app, [*words, "--json"])
    assert isinstance(refused.exception, UsageError) and "--yes" in str(refused.exception)
    said = json.loads(CliRunner().invoke(app, [*words, "--yes", "--json"], catch_exceptions=False).stdout)
    assert {one["run"] for one in said["charged"]} == {"run-1", "run-2"} and said["missing_entries"] > 0
    assert said["spent"]["epsilon"] > truth and said["entries"] == Ledger(folder / "ledger.sqlite3").head().entries
