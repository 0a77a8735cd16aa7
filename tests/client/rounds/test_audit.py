"""The audit log of a site's rounds: every refusal with its code, every reply before it leaves, and no name."""

from __future__ import annotations

import dataclasses
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from builders.broadcasts import broadcast_of
from builders.sites import KEY, RELEASING_SITE, releasing_study, write_patients
from flwr.app import Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from wardround.errors import AuditError, BudgetRefusal, PolicyRefusal, WireError
from wardround.flower.record import record_of
from wardround.records.audit_log import verified
from wardround.records.refusal_counts import IN_FULL, only_counted
from wardround.wire.packets import pack_broadcast, weights_sha256
from wardround_client.flower.site_app import site_app
from wardround_client.ledger.ledger import Ledger
from wardround_client.privacy.plan import plan_from_study
from wardround_client.rounds import evaluation, training
from wardround_client.rounds.deadline import OutOfTime, time_limit
from wardround_client.rounds.evaluation import release_scores
from wardround_client.rounds.training import admit, answer
from wardround_client.site.site import open_site
from wardround_client.sources.cohort import pseudonym
from wardround_client.studies.approvals import approve, decide_against, find_study
from wardround_client.studies.store import store_approved
from wardround_client.training.train import train


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A site whose patients are called CANARY."""
    write_patients(tmp_path, "CANARY^")
    (tmp_path / "site.toml").write_text(RELEASING_SITE)
    return tmp_path


def entries(folder: Path) -> tuple[dict, ...]:
    return verified(folder / "audit.jsonl").entries


def test_a_reply_is_in_the_log_with_its_hash_and_the_epsilon_that_the_ledger_says(folder: Path) -> None:
    store_approved(folder, releasing_study())
    site, message = open_site(folder), broadcast_of(releasing_study())
    reply = answer(message, site).weights
    first = site.ledger.spent(1e-4)
    answer(message, site)
    answer(broadcast_of(releasing_study(), 2), site)
    one, again, two = entries(folder)
    assert (one["run"], one["round"], one["purpose"], one["again"]) == ("run", 1, "train", False)
    assert one["reply"] == weights_sha256(reply) == again["reply"] and again["again"] is True
    assert one["epsilon"] == again["epsilon"] == first.to_json()
    assert two["epsilon"] == site.ledger.spent(1e-4).to_json() and two["epsilon"]["epsilon"] > first.value > 0


def test_a_settled_round_asked_for_all_day_is_counted_and_not_written_down_each_time(folder: Path) -> None:
    store_approved(folder, releasing_study())
    site, message = open_site(folder), broadcast_of(releasing_study())
    for _ in range(1 + IN_FULL + 30):
        answer(message, site)
    assert [one["again"] for one in entries(folder)] == [False] + [True] * IN_FULL
    assert only_counted(folder / "audit.jsonl") == 30


def test_one_approval_answers_one_run_and_a_server_that_renames_it_gets_no_more(
    folder: Path,
) -> None:
    """48 runs are asked for, which the cap would bear. What a person read was the cost of one."""
    study = releasing_study(epsilon=0.5)
    approve(folder, study, "Marie", Ledger(folder / "ledger.sqlite3"), open_site(folder).cap)

    codes = []

    def answered() -> int:
        count = 0
        for number in range(48):
            site = open_site(folder)  # a process each, as on a daemon's machine
            for round_ in (1, 2, 3):
                try:
                    answer(dataclasses.replace(broadcast_of(study, round_), run_id=f"run-{number}"), site)
                    count += 1
                except PolicyRefusal as refusal:
                    codes.append(refusal.code)
            site.ledger.close()
        return count

    assert answered() == 3
    assert codes == ["runs_used"] * 47 * 3
    assert {one["code"] for one in entries(folder) if one["event"] == "message-refused"} == {"runs_used"}
    promised = plan_from_study(study).promised().value
    assert Ledger(folder / "ledger.sqlite3").spent(study.privacy.delta).value <= promised <= study.privacy.epsilon
    approve(folder, study, "Marie", Ledger(folder / "ledger.sqlite3"), open_site(folder).cap, runs=2)
    assert answered() == 2 * 3, "the first run's replies again, and those of one more"
    assert {attempt.run for attempt in Ledger(folder / "ledger.sqlite3").attempts()} == {"run-0", "run-1"}


def test_released_figures_are_in_the_log_too(folder: Path) -> None:
    study = releasing_study(evaluation_epsilon=1.0)
    store_approved(folder, study)
    release_scores(broadcast_of(study, 4), open_site(folder))
    release_scores(broadcast_of(study, 4), open_site(folder))
    assert [(one["purpose"], one["again"]) for one in entries(folder)] == [("evaluate", False), ("evaluate", True)]


def test_nothing_leaves_that_cannot_be_written_down(folder: Path) -> None:
    store_approved(folder, releasing_study())
    (folder / "audit.jsonl").write_text("not what was written\n")
    (folder / "audit.head").write_text(f"{3:015d} {'0' * 64}\n")
    with pytest.raises(AuditError):
        answer(broadcast_of(releasing_study()), open_site(folder))
    assert len(Ledger(folder / "ledger.sqlite3").attempts()) == 1, "it is charged; its bytes stay here"
    for name in ("audit.jsonl", "audit.head"):
        (folder / name).unlink()
    answer(broadcast_of(releasing_study()), open_site(folder))
    assert [one["again"] for one in entries(folder)] == [True]
    assert len(Ledger(folder / "ledger.sqlite3").attempts()) == 1


def test_every_refusal_is_in_the_log_by_its_code_and_none_by_its_text(folder: Path, caplog) -> None:
    class Fails(dict):
        """A disk that fails whoever is there."""

        def __setitem__(self, attempt, weights) -> None:
            raise OSError(f"/data/CANARY^1.dcm of patient {pseudonym(KEY, 'CANARY^1')}")

    with pytest.raises(PolicyRefusal):
        answer(broadcast_of(releasing_study()), open_site(folder))
    store_approved(folder, releasing_study())
    site = open_site(folder)
    with pytest.raises(PolicyRefusal):
        answer(broadcast_of(releasing_study(), architecture_sha256="0" * 64), site)
    with pytest.raises(WireError):
        answer(broadcast_of(releasing_study(), weights={"head.weight": np.zeros((9, 9), np.float32)}), site)
    with pytest.raises(OSError):
        answer(broadcast_of(releasing_study()), dataclasses.replace(site, replies=Fails()))
    with pytest.raises(PolicyRefusal):
        release_scores(broadcast_of(releasing_study(), 4), site)
    codes = ["not_approved", "architecture", "wire-names", "failed", "evaluation_not_asked"]
    assert [(one["event"], one["code"]) for one in entries(folder)] == [("message-refused", code) for code in codes]
    text = (folder / "audit.jsonl").read_text()
    assert "CANARY" not in text and "/data" not in text and pseudonym(KEY, "CANARY^1") not in text


def test_what_a_person_revokes_or_lowers_while_a_process_waits_for_its_turn_holds_for_it(folder: Path) -> None:
    """Another process of the site is at work; the change is made before the lock is free."""
    study = releasing_study(evaluation_epsilon=1.0)

    def approve_again() -> None:
        (folder / "site.toml").write_text(RELEASING_SITE)
        approve(folder, study, "Marie", Ledger(folder / "ledger.sqlite3"), open_site(folder).cap)

    def revoke() -> None:
        decide_against(folder, find_study(folder, study.sha256()[:12]), "revoked", "Marie")

    def lower_the_cap() -> None:
        (folder / "site.toml").write_text(RELEASING_SITE.replace("12.0", "0.5"))

    def release_nothing() -> None:
        (folder / "site.toml").write_text(RELEASING_SITE.replace('"noised"', '"off"'))

    def code_of(change, ask, round_: int) -> str:
        @contextmanager
        def waits():
            change()
            yield

        approve_again()
        site = dataclasses.replace(open_site(folder), exclusive=waits)
        with pytest.raises((PolicyRefusal, BudgetRefusal)) as caught:
            ask(broadcast_of(study, round_), site)
        return caught.value.code

    assert code_of(revoke, answer, 1) == code_of(revoke, release_scores, 4) == "not_approved"
    assert code_of(lower_the_cap, answer, 1) == code_of(lower_the_cap, release_scores, 4) == "budget"
    assert code_of(release_nothing, release_scores, 4) == "evaluation_off"
    assert Ledger(folder / "ledger.sqlite3").attempts() == []
    assert not [one for one in entries(folder) if one["event"] == "released"]


def test_a_round_that_is_charged_and_late_is_in_the_log_with_its_study_run_and_round(folder: Path, monkeypatch) -> None:
    study = releasing_study(evaluation_epsilon=1.0)
    store_approved(folder, study)

    def hangs(*arguments, **keywords):
        time.sleep(60)
        return train(*arguments, **keywords)

    open_site(folder)
    monkeypatch.setattr(training, "train", hangs)
    monkeypatch.setattr(evaluation, "held_out_scores", hangs)
    for ask, round_ in ((answer, 1), (release_scores, 4)):
        site = open_site(folder)
        admit(broadcast_of(study, round_), site, range(1, 5))  # builds the network, which takes its time
        with pytest.raises(OutOfTime), time_limit(2.0):
            ask(broadcast_of(study, round_), site)
    named = {"study": study.sha256(), "run": "run"}
    assert [{key: one[key] for key in ("event", "code", "study", "run", "round")} for one in entries(folder)] == [
        {"event": "message-refused", "code": "late", **named, "round": round_} for round_ in (1, 4)
    ]
    assert len(Ledger(folder / "ledger.sqlite3").attempts()) == 2, "which is charged"


def test_a_message_that_is_none_or_comes_to_a_folder_that_is_none_is_in_the_log(tmp_path: Path, monkeypatch) -> None:
    for name, number in (("_task_id", 7), ("_run_id", 1), ("_node_id", 2)):
        monkeypatch.setattr(TaskIdentity, name, number)

    def said(content: RecordDict) -> str:
        message = Message(content, dst_node_id=2, message_type="train", ttl=120.0)
        message.metadata.__dict__["_message_id"] = "asked"
        context = Context(run_id=1, node_id=2, node_config={}, state=RecordDict(), run_config={})
        return site_app(tmp_path)(message, context).content["header"]["code"]

    broken = record_of(pack_broadcast(broadcast_of(releasing_study())))
    broken["header"]["round"] = 0
    codes = [said(RecordDict()), said(broken), said(record_of(pack_broadcast(broadcast_of(releasing_study()))))]
    assert codes == ["wire-header", "wire-header", "failed"]  # the last: there is no site.toml
    assert [one["code"] for one in entries(tmp_path)] == codes
