"""The ledger: held before data are read, charged before training, settled before sending, and never above the cap."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import multiprocessing
import random
import sqlite3
import time
from pathlib import Path

import pytest
from builders.ledgers import CAP, OTHER, STUDY, plan

from wardround.accounting import PureEvent, spent
from wardround.errors import BudgetRefusal, LedgerError, PolicyRefusal
from wardround.records.chain import START, Witness, linked
from wardround.study.load import parse_study
from wardround.wire.packets import LedgerHead
from wardround_client.ledger.file import LedgerFile
from wardround_client.ledger.ledger import Cap, Ledger, cap_of
from wardround_client.privacy.plan import PrivacyPlan, plan_from_study


def test_a_study_above_the_cap_is_refused_and_leaves_no_trace(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite3")
    with pytest.raises(BudgetRefusal, match="cap of epsilon 1"):
        ledger.hold(STUDY, "run", plan(epsilon=2.0), Cap(epsilon=1.0, delta=1e-4))
    assert ledger.committed(1e-4).value == 0
    with pytest.raises(LedgerError, match="no budget is held"):
        ledger.reserve(STUDY, "run", 1, "w", cap=CAP)


def test_studies_add_up_and_the_second_is_refused_at_the_cap() -> None:
    ledger = Ledger(None)
    ledger.hold(STUDY, "run", plan(epsilon=6.0), CAP)
    with pytest.raises(BudgetRefusal):
        ledger.hold(OTHER, "run", plan(epsilon=6.0), CAP)
    ledger.hold(OTHER, "run", plan(epsilon=1.0), CAP)
    assert 6.0 < ledger.committed(1e-4).value <= 8.0


def test_the_second_run_of_a_study_is_a_second_hold() -> None:
    ledger = Ledger(None)
    ledger.hold(STUDY, "first", plan(epsilon=7.0), CAP)
    ledger.hold(STUDY, "first", plan(epsilon=7.0), CAP)
    with pytest.raises(BudgetRefusal):
        ledger.hold(STUDY, "second", plan(epsilon=7.0), CAP, runs=2)


def test_a_study_gets_as_many_runs_as_were_allowed_whatever_the_server_calls_them(tmp_path: Path) -> None:
    ledger, small = Ledger(tmp_path / "ledger.sqlite3"), plan(epsilon=0.1)
    ledger.hold(STUDY, "run", small, CAP)
    for number in range(48):
        with pytest.raises(PolicyRefusal, match="--runs 2") as caught:
            ledger.hold(STUDY, f"run-{number}", small, CAP)
        assert caught.value.code == "runs_used"
    ledger.hold(STUDY, "run", small, CAP)
    assert ledger.reserve(STUDY, "run", 1, "w", cap=CAP) == 1, "the run that began goes on"
    with pytest.raises(LedgerError, match="no budget is held"):
        ledger.reserve(STUDY, "run-1", 1, "w", cap=CAP)
    ledger.hold(OTHER, "run", small, CAP)
    ledger.hold(STUDY, "second", small, CAP, runs=2)
    with pytest.raises(PolicyRefusal):
        Ledger(tmp_path / "ledger.sqlite3").hold(STUDY, "third", small, CAP, runs=2)
    ledger.hold(STUDY, "second", small, CAP, runs=1)  # fewer are allowed now: what began may still go on
    assert ledger.runs_of(STUDY) == 2 and ledger.runs_of(OTHER) == 1


def test_a_run_that_was_released_counts_as_one_that_began() -> None:
    ledger, small = Ledger(None), plan(epsilon=0.1)
    ledger.hold(STUDY, "run", small, CAP)
    ledger.release(STUDY, "run", "Marie")
    with pytest.raises(PolicyRefusal) as caught:
        ledger.hold(STUDY, "other", small, CAP)
    assert caught.value.code == "runs_used"


def _begin_runs(path: str, name: str, barrier) -> None:
    ledger, small = Ledger(Path(path)), plan(epsilon=0.1)
    barrier.wait(120)
    for number in range(12):
        with contextlib.suppress(PolicyRefusal):
            ledger.hold(STUDY, f"{name}-{number}", small, CAP, runs=5)


def test_runs_are_counted_where_no_other_process_can_begin_one(tmp_path: Path, monkeypatch) -> None:
    first, second = (Ledger(tmp_path / "ledger.sqlite3") for _ in range(2))
    enter, small = first._file.transaction, plan(epsilon=0.1)

    def after_the_other_one():
        second.hold(STUDY, "second", small, CAP)
        return enter()

    monkeypatch.setattr(first._file, "transaction", after_the_other_one)
    with pytest.raises(PolicyRefusal):
        first.hold(STUDY, "first", small, CAP)
    assert second.runs_of(STUDY) == 1


def test_processes_that_are_killed_begin_no_run_more_than_was_allowed(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite3"
    Ledger(path).close()
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(5)
    workers = [context.Process(target=_begin_runs, args=(str(path), name, barrier)) for name in "abcd"]
    for worker in workers:
        worker.start()
    barrier.wait(120)
    for worker in workers[:3]:
        time.sleep(random.random() * 0.05)
        worker.kill()
    for worker in workers:
        worker.join(120)
    ledger = Ledger(path)
    assert ledger.runs_of(STUDY) == len(ledger.holds()) == 5 and ledger.verify() == ledger.head()


def test_a_hold_cannot_change_its_plan() -> None:
    ledger = Ledger(None)
    ledger.hold(STUDY, "run", plan(epsilon=3.0), CAP)
    with pytest.raises(LedgerError, match="another plan"):
        ledger.hold(STUDY, "run", plan(epsilon=4.0), CAP)


def test_delta_above_the_sites_and_epsilon_inf_need_permission() -> None:
    ledger = Ledger(None)
    with pytest.raises(PolicyRefusal) as caught:
        ledger.hold(STUDY, "run", plan(epsilon=1.0, delta=1e-3), CAP)
    assert caught.value.code == "delta"
    with pytest.raises(PolicyRefusal) as caught:
        ledger.hold(STUDY, "run", plan(epsilon=math.inf), Cap(epsilon=math.inf, delta=1e-4))
    assert caught.value.code == "no_privacy"
    ledger.hold(STUDY, "run", plan(epsilon=math.inf), Cap(epsilon=8.0, delta=1e-4, allow_no_privacy=True))
    assert ledger.committed(1e-4).value == math.inf


def test_attempts_are_events_and_never_exceed_the_promise() -> None:
    ledger = Ledger(None)
    ledger.hold(STUDY, "run", plan(), CAP)
    for number in range(6):
        ledger.reserve(STUDY, "run", 1 if number == 0 else number, "w", cap=CAP)
        assert sum(event.steps for event in ledger.events()) == number + 1
    with pytest.raises(BudgetRefusal) as caught:
        ledger.reserve(STUDY, "run", 5, "w", cap=CAP)
    assert caught.value.code == "no_spare_rounds"
    assert 7.9 < ledger.spent(1e-4).value <= 8.0


def test_a_settled_round_is_found_again_and_other_weights_are_refused() -> None:
    ledger = Ledger(None)
    ledger.hold(STUDY, "run", plan(), CAP)
    assert ledger.settled(STUDY, "run", 1, "w") is None
    attempt = ledger.reserve(STUDY, "run", 1, "w", cap=CAP)
    assert ledger.settled(STUDY, "run", 1, "w") is None
    with pytest.raises(PolicyRefusal, match="other weights"):
        ledger.settled(STUDY, "run", 1, "v")
    ledger.settle(attempt, "reply")
    found = ledger.settled(STUDY, "run", 1, "w")
    assert found is not None and found.reply_sha256 == "reply"
    with pytest.raises(LedgerError, match="already settled"):
        ledger.settle(attempt, "another reply")
    with pytest.raises(LedgerError, match="never recorded"):
        ledger.settle(attempt + 1, "a reply of nothing")


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE entries SET body = '{}'",
        "DELETE FROM entries",
        "DELETE FROM entries WHERE number = 3",
        "UPDATE entries SET sha256 = '' WHERE number = 2",
    ],
)
def test_the_tables_are_append_only(tmp_path: Path, statement: str) -> None:
    path = tmp_path / "ledger.sqlite3"
    ledger = Ledger(path)
    ledger.hold(STUDY, "run", plan(), CAP)
    ledger.reserve(STUDY, "run", 1, "w", cap=CAP)
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        sqlite3.connect(path).execute(statement)


def test_what_is_no_ledger_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite3"
    path.write_bytes(b"this is not a database, by far" * 100)
    with pytest.raises(LedgerError, match="not a readable ledger"):
        Ledger(path)
    newer = sqlite3.connect(tmp_path / "newer.sqlite3")
    newer.execute("PRAGMA user_version = 99")
    newer.commit()
    with pytest.raises(LedgerError, match="upgrade"):
        Ledger(tmp_path / "newer.sqlite3")


def _reserve_some(path: str, name: str, barrier, pipe) -> None:
    ledger, made = Ledger(Path(path)), []
    barrier.wait(120)
    for number in range(20):
        try:
            made.append(ledger.reserve(STUDY, "run", number + 1, name, cap=CAP))
            ledger.settle(made[-1], f"{name} {number}")
        except BudgetRefusal:
            pass
    pipe.send(made)


def test_two_processes_share_a_ledger_without_losing_an_event_or_making_one_too_many(tmp_path: Path) -> None:
    path, held = tmp_path / "ledger.sqlite3", 30
    watching = Ledger(path)
    watching.hold(STUDY, "run", plan(rounds=held - 1), CAP)
    context = multiprocessing.get_context("spawn")
    pipes, barrier = [context.Pipe(duplex=False) for _ in range(2)], context.Barrier(2)
    workers = [
        context.Process(target=_reserve_some, args=(str(path), name, barrier, sender))
        for name, (_, sender) in zip("vw", pipes, strict=True)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0
    made = [receiver.recv() for receiver, _ in pipes]
    assert sorted(made[0] + made[1]) == list(range(1, held + 1))
    attempts = watching.attempts()
    assert [attempt.id for attempt in attempts] == list(range(1, held + 1))
    assert all(attempt.reply_sha256 is not None for attempt in attempts)
    assert watching.verify() == watching.head() == Ledger(path).head()
    assert watching.head().entries == 2 + 2 * held


def test_every_change_is_on_the_disk_before_the_call_returns(tmp_path: Path) -> None:
    """SQLite's strictest setting: the file, its journal and their folder are synced (3 is EXTRA)."""
    file = LedgerFile(tmp_path / "ledger.sqlite3")
    settings = [file._connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("synchronous", "journal_mode")]
    assert settings == [3, "delete"]


# Training and evaluation


def test_evaluation_is_held_beside_training_and_each_has_its_own_attempts() -> None:
    ledger, both = Ledger(None), plan(epsilon=4.0, evaluation=1.0)
    ledger.hold(STUDY, "run", both, CAP)
    assert both.events() == [PureEvent(epsilon=1.0, count=2), both.event(6)]
    assert ledger.committed(1e-4) == spent(both.events(), 1e-4)
    assert 4.0 < ledger.committed(1e-4).value <= 6.0
    for number in range(2):
        attempt = ledger.reserve(STUDY, "run", 6, "w", "evaluate", cap=CAP)
        assert attempt == number + 1
    with pytest.raises(BudgetRefusal, match="all 2 attempts of this run to evaluate"):
        ledger.reserve(STUDY, "run", 6, "w", "evaluate", cap=CAP)
    ledger.reserve(STUDY, "run", 6, "w", cap=CAP)
    assert ledger.events() == [PureEvent(epsilon=1.0, count=2), both.event(1)]
    assert ledger.events(purpose="train") == [both.event(1)]
    assert ledger.spent(1e-4, "run", "evaluate").value == 2.0
    with pytest.raises(BudgetRefusal):
        Ledger(None).hold(STUDY, "run", plan(epsilon=7.0, evaluation=1.0), Cap(epsilon=7.5, delta=1e-4))


def test_a_round_of_training_and_one_of_evaluation_are_two_questions() -> None:
    ledger = Ledger(None)
    ledger.hold(STUDY, "run", plan(epsilon=4.0, evaluation=1.0), CAP)
    ledger.settle(ledger.reserve(STUDY, "run", 5, "w", cap=CAP), "trained")
    assert ledger.settled(STUDY, "run", 5, "v", "evaluate") is None
    ledger.settle(ledger.reserve(STUDY, "run", 5, "v", "evaluate", cap=CAP), "figures")
    assert ledger.settled(STUDY, "run", 5, "v", "evaluate").reply_sha256 == "figures"
    assert ledger.settled(STUDY, "run", 5, "w").reply_sha256 == "trained"
    with pytest.raises(PolicyRefusal, match="other weights"):
        ledger.settled(STUDY, "run", 5, "w", "evaluate")


def test_a_study_without_evaluation_has_none_to_spend() -> None:
    ledger = Ledger(None)
    ledger.hold(STUDY, "run", plan(), CAP)
    with pytest.raises(BudgetRefusal, match="all 0 attempts"):
        ledger.reserve(STUDY, "run", 6, "w", "evaluate", cap=CAP)


def test_an_exact_evaluation_needs_the_permission_that_no_privacy_needs() -> None:
    exact = plan(epsilon=4.0, evaluation=math.inf)
    with pytest.raises(PolicyRefusal, match="allow_no_privacy"):
        Ledger(None).hold(STUDY, "run", exact, CAP)
    ledger = Ledger(None)
    ledger.hold(STUDY, "run", exact, Cap(epsilon=8.0, delta=1e-4, allow_no_privacy=True))
    ledger.hold(STUDY, "run", exact, Cap(epsilon=8.0, delta=1e-4, allow_no_privacy=True))
    assert ledger.committed(1e-4).value == math.inf


@pytest.mark.parametrize(("epsilon", "evaluation"), [(8.0, 0.0), (3.0, 1.0), (0.5, 3.0)])
def test_the_smallest_cap_holds_the_study_once(epsilon: float, evaluation: float) -> None:
    content = {
        "study": {"name": "t", "rounds": 5, "spare_rounds": 1},
        "data": {"labels": ["a", "b"]},
        "privacy": {"epsilon": epsilon, "delta": 1e-4, "max_grad_norm": 1.0, "nominal_patients": 10},
        "aggregation": {"nominal_sites": 1},
        "evaluation": {"epsilon": evaluation},
    }
    study = parse_study(content)
    ledger, made, cap = Ledger(None), plan_from_study(study), cap_of(study)
    ledger.hold(STUDY, "run", made, cap)
    with pytest.raises(BudgetRefusal):
        ledger.hold(STUDY, "again", made, cap, runs=2)


# Several studies, release, what-if


def test_a_release_gives_back_what_was_not_used_and_keeps_what_was() -> None:
    ledger = Ledger(None)
    ledger.hold(STUDY, "run", plan(epsilon=6.0), CAP)
    attempt = ledger.reserve(STUDY, "run", 1, "w", cap=CAP)
    with pytest.raises(BudgetRefusal):
        ledger.hold(OTHER, "run", plan(epsilon=6.0), CAP)
    hold = ledger.release(STUDY, "run", "the officer")
    assert (hold.used, hold.attempts_left, hold.released_by) == ({"train": 1}, {"train": 0}, "the officer")
    assert ledger.committed(1e-4) == ledger.spent(1e-4) and ledger.spent(1e-4).value > 0
    ledger.hold(OTHER, "run", plan(epsilon=6.0), CAP)
    with pytest.raises(BudgetRefusal) as caught:
        ledger.reserve(STUDY, "run", 2, "w", cap=CAP)
    assert caught.value.code == "released"
    ledger.settle(attempt, "reply")  # it was training when the release came
    assert ledger.settled(STUDY, "run", 1, "w") is not None
    entries = ledger.head().entries
    assert ledger.release(STUDY, "run", "another").released_by == "the officer"
    assert ledger.head().entries == entries
    with pytest.raises(LedgerError, match="no budget is held"):
        ledger.release(OTHER, "none", "the officer")


@pytest.mark.parametrize("cap", [0.5, 2.0, 4.0, 8.0])
@pytest.mark.parametrize("asked", [0.4, 1.5, 3.9])
@pytest.mark.parametrize("evaluation", [0.0, 0.2])
def test_what_if_says_what_hold_does_and_counts_the_rounds_that_hold_would_take(cap, asked, evaluation) -> None:
    limit = Cap(epsilon=cap, delta=1e-4)
    ledger = Ledger(None)
    ledger.hold(OTHER, "earlier", plan(epsilon=0.3), limit)
    made = plan(epsilon=asked, evaluation=evaluation)
    said = ledger.what_if(made, limit)
    assert said.now == ledger.committed(1e-4) and said.remaining.value == pytest.approx(cap - said.now.value)
    entries = ledger.head().entries

    def holds(rounds: int) -> bool:
        fresh = Ledger(None)
        fresh.hold(OTHER, "earlier", plan(epsilon=0.3), limit)
        try:
            fresh.hold(STUDY, "run", dataclasses.replace(made, rounds=rounds, spare_rounds=0), limit)
        except BudgetRefusal:
            return False
        return True

    assert holds(said.rounds_affordable + 1) is False
    assert said.rounds_affordable == 0 or holds(said.rounds_affordable)
    assert ledger.head().entries == entries, "a question was written down"
    try:
        ledger.hold(STUDY, "run", made, limit)
    except BudgetRefusal as refusal:
        assert str(said.refusal) == str(refusal) and said.rounds_affordable < said.rounds_asked
    else:
        assert said.refusal is None and said.rounds_affordable >= said.rounds_asked == 6
        assert said.after == ledger.committed(1e-4)


def test_what_if_of_a_study_without_privacy_has_no_number_of_rounds_or_none_at_all() -> None:
    free = plan(epsilon=math.inf)
    assert Ledger(None).what_if(free, CAP).rounds_affordable == 0
    assert Ledger(None).what_if(free, CAP).refusal.code == "no_privacy"
    allowed = Ledger(None).what_if(free, Cap(epsilon=8.0, delta=1e-4, allow_no_privacy=True))
    assert allowed.rounds_affordable is None and allowed.refusal is None and allowed.after.value == math.inf


# The chain, the witness, and damage


def a_ledger(folder: Path, rounds: int = 3) -> Path:
    path = folder / "ledger.sqlite3"
    ledger = Ledger(path)
    ledger.hold(STUDY, "run", plan(epsilon=2.0, evaluation=0.5), CAP)
    for number in range(1, rounds + 1):
        ledger.settle(ledger.reserve(STUDY, "run", number, "w" * 64, cap=CAP), "f" * 64)
    ledger.hold(OTHER, "run", plan(epsilon=1.0), CAP)
    ledger.reserve(OTHER, "run", 1, "v" * 64, "train", cap=CAP)
    ledger.release(OTHER, "run", "the officer")
    ledger.close()
    return path


def rows_of(path: Path) -> list[tuple]:
    connection = sqlite3.connect(path)
    rows = connection.execute("SELECT number, body, sha256 FROM entries ORDER BY number").fetchall()
    connection.close()
    return rows


def alter(path: Path, *statements: str) -> None:
    """As someone would who knows SQLite: the triggers are gone first and are back afterwards."""
    connection = sqlite3.connect(path)
    triggers = connection.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'trigger'").fetchall()
    for name, _ in triggers:
        connection.execute(f"DROP TRIGGER {name}")
    for statement in (*statements, *(sql for _, sql in triggers)):
        connection.execute(statement)
    connection.commit()
    connection.close()


@pytest.mark.parametrize(
    ("statement", "named"),
    [
        ("UPDATE entries SET body = replace(body, '\"attempts\":6', '\"attempts\":9') WHERE number = 2", "entry 2 was"),
        (
            "UPDATE entries SET body = replace(body, '\"round\":2', '\"round\":3') WHERE number = 5",
            "entry 5 was altered",
        ),
        ("UPDATE entries SET sha256 = replace(sha256, 'a', 'b') WHERE number = 4", "entry 4 was altered"),
        ("DELETE FROM entries WHERE number = 5", "entry 5 is missing"),
        ("DELETE FROM entries WHERE number = 1", "entry 1 is missing"),
        ("DELETE FROM entries WHERE number > 9", "an older copy: it ends at entry 9, but ledger.head records 11"),
        ("UPDATE entries SET number = -number WHERE number = 7", "entry 1 is missing: entry -7"),
        ("UPDATE entries SET number = 12 WHERE number = 11", "entry 11 is missing"),
    ],
)
def test_an_entry_altered_taken_out_or_moved_is_named(tmp_path: Path, statement: str, named: str) -> None:
    path = a_ledger(tmp_path)
    before = rows_of(path)
    opened = Ledger(path)
    alter(path, statement)
    assert rows_of(path) != before
    for check in (lambda: Ledger(path), opened.verify):
        with pytest.raises(LedgerError, match=named) as caught:
            check()
        assert "put the newest copy back" in str(caught.value) and "\n" not in str(caught.value)


def test_a_chain_written_anew_is_another_history(tmp_path: Path) -> None:
    """Someone lowers a noise and computes every hash again: the witness beside the file has seen another end."""
    path = a_ledger(tmp_path)
    rows, head = rows_of(path), START
    forged = []
    for _, body, _ in rows:
        body = body.replace('"attempts":6', '"attempts":7')
        head = linked(head, body)
        forged.append((head.entries, body, head.sha256))
    assert forged != rows
    connection = sqlite3.connect(path)
    connection.execute("DROP TRIGGER entries_DELETE")
    connection.execute("DELETE FROM entries")
    connection.executemany("INSERT INTO entries VALUES (?, ?, ?)", forged)
    connection.commit()
    connection.close()
    with pytest.raises(LedgerError, match="a different history"):
        Ledger(path)
    (tmp_path / "ledger.head").unlink()
    with pytest.raises(LedgerError, match="triggers were altered"):  # as good as it gets without the witness
        Ledger(path).verify()


def test_two_ledgers_with_the_same_entries_have_different_heads(tmp_path: Path) -> None:
    """So a head tells a server nothing of the entries: no guess of them can be checked against it."""
    one, two = Ledger(None), Ledger(None)
    assert one.head().entries == two.head().entries == 1 and one.head() != two.head()


def test_a_flipped_byte_is_found_or_changes_no_entry(tmp_path: Path) -> None:
    path = a_ledger(tmp_path)
    whole, witness, rows = path.read_bytes(), path.with_suffix(".head").read_bytes(), rows_of(path)
    entries = {
        place + offset
        for _, body, sha256 in rows
        for text in (body.encode(), sha256.encode())
        for place in [whole.index(text)]
        for offset in range(len(text))
    }
    draw = random.Random(20)
    places = [*draw.sample(sorted(entries), 150), *(draw.randrange(len(whole)) for _ in range(250)), *range(100)]
    found = missed = 0
    for number, place in enumerate(places):
        damaged = bytearray(whole)
        damaged[place] ^= draw.randrange(1, 256)
        folder = tmp_path / f"{number}"
        folder.mkdir()
        copy = folder / "ledger.sqlite3"
        copy.write_bytes(damaged)
        (folder / "ledger.head").write_bytes(witness)
        try:
            ledger = Ledger(copy)
            ledger.verify()
        except LedgerError as error:
            assert "\n" not in str(error)
            found += 1
            continue
        assert place not in entries, f"byte {place} of an entry was flipped and not found"
        ledger.close()
        assert rows_of(copy) == rows, f"byte {place} changed the entries and was not found"
        missed += 1
    assert found >= 150 and missed > 0  # free space and counters of SQLite's own are not content


def test_a_ledger_cut_short_is_found(tmp_path: Path) -> None:
    path = a_ledger(tmp_path)
    big = Ledger(path)
    for number in range(10):
        big.hold(STUDY, f"run {number}", plan(epsilon=0.1), CAP, runs=11)
    big.close()
    whole = path.read_bytes()
    assert len(whole) > 8192
    for cut in (0, 1, 100, 4096, 5000, 8192, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(LedgerError, match="put the newest copy back"):
            Ledger(path).verify()
    path.write_bytes(whole)
    Ledger(path).verify()


def test_an_old_copy_that_was_put_back_is_noticed_and_the_newest_one_is_taken_again(tmp_path: Path) -> None:
    path = a_ledger(tmp_path, rounds=2)
    old = path.read_bytes()
    ledger = Ledger(path)
    ledger.settle(ledger.reserve(STUDY, "run", 3, "w", cap=CAP), "reply")
    ledger.close()
    new = path.read_bytes()
    path.write_bytes(old)
    with pytest.raises(
        LedgerError, match="an older copy: it ends at entry 9, but ledger.head records 11 entries; put the"
    ):
        Ledger(path)
    path.unlink()
    with pytest.raises(LedgerError, match="is missing or empty, but ledger.head records 11 entries"):
        Ledger(path)
    path.write_bytes(new)
    assert len(Ledger(path).attempts()) == 4


def test_a_ledger_that_is_exchanged_while_a_site_has_it_open_is_noticed(tmp_path: Path) -> None:
    path = a_ledger(tmp_path, rounds=2)
    old = path.read_bytes()
    ledger = Ledger(path)
    ledger.reserve(STUDY, "run", 3, "w", cap=CAP)
    ledger.close()
    ledger = Ledger(path)
    path.write_bytes(old)
    with pytest.raises(LedgerError, match="was replaced while it was open|not a readable ledger"):
        ledger.reserve(STUDY, "run", 4, "w", cap=CAP)


def test_a_crash_between_an_entry_and_its_witness_is_no_loss(tmp_path: Path) -> None:
    path = a_ledger(tmp_path)
    witness = tmp_path / "ledger.head"
    older = Ledger(path)
    before = witness.read_bytes()
    older.reserve(STUDY, "run", 4, "w", cap=CAP)
    after = witness.read_bytes()
    assert before != after
    witness.write_bytes(before)
    Ledger(path)
    assert witness.read_bytes() == after
    witness.write_bytes(b"")  # made, and killed before its first line
    Ledger(path)
    assert witness.read_bytes() == after
    witness.write_bytes(after[:-3])
    with pytest.raises(LedgerError, match=r"ledger.head: damaged"):
        Ledger(path)


def test_the_witness_never_goes_back(tmp_path: Path) -> None:
    path = a_ledger(tmp_path)
    witness = Witness(tmp_path / "ledger.head")
    head = Ledger(path).head()
    witness.advance(LedgerHead(entries=head.entries - 1, sha256="0" * 64))
    assert witness.read() == head


def test_every_change_is_witnessed_before_the_call_returns(tmp_path: Path) -> None:
    ledger, witness = Ledger(tmp_path / "ledger.sqlite3"), Witness(tmp_path / "ledger.head")
    assert witness.read() == ledger.head()
    ledger.hold(STUDY, "run", plan(), CAP)
    assert witness.read() == ledger.head()
    attempt = ledger.reserve(STUDY, "run", 1, "w", cap=CAP)
    assert witness.read() == ledger.head()
    ledger.settle(attempt, "reply")
    assert witness.read() == ledger.head()
    ledger.release(STUDY, "run", "the officer")
    assert witness.read() == ledger.head() and ledger.head().entries == 5


NEXT = {"kind": "attempt", "id": 5, "study": STUDY, "run": "run", "round": 4, "weights": "w", "purpose": "train"}


@pytest.mark.parametrize(
    ("entry", "named"),
    [
        ({"kind": "gift"}, "entry 12: unknown kind of entry 'gift'; upgrade wardround"),
        ({**NEXT, "purpose": "x"}, "exceeds the attempts"),
        ({**NEXT, "id": 4}, "order"),
        ({**NEXT, "study": OTHER}, "exceeds the attempts"),
        ({**NEXT, "study": "c"}, "no budget"),
        ({"kind": "settled", "id": 1, "reply_sha256": "e"}, "settled twice"),
        ({"kind": "settled", "id": 99, "reply_sha256": "e"}, "never recorded"),
        ({"kind": "released", "study": OTHER, "run": "run", "who": "x"}, "released twice"),
        ({"kind": "hold", "study": STUDY, "run": "run", "shares": {}}, "budget of one run is held twice"),
        ({"kind": "hold", "study": "c", "run": "run", "shares": {"train": {}}}, "malformed"),
        ({"kind": "attempt"}, "malformed"),
    ],
)  # fmt: skip
def test_an_entry_that_contradicts_those_before_it_is_refused_though_its_hash_fits(tmp_path, entry, named) -> None:
    path = a_ledger(tmp_path)
    open_ledger = Ledger(path)
    file = LedgerFile(path)
    with file.transaction():
        file.append(open_ledger.head(), entry)
    for _ in range(2):  # and it is not passed over the second time
        with pytest.raises(LedgerError, match=named):
            open_ledger.attempts()
    with pytest.raises(LedgerError, match=named):
        Ledger(path)


def test_a_ledger_in_use_is_not_called_damaged(tmp_path: Path, monkeypatch) -> None:
    path = a_ledger(tmp_path)
    monkeypatch.setattr("wardround_client.ledger.file._BUSY_TIMEOUT_S", 0.05)
    ledger, other = Ledger(path), sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(LedgerError, match="locked.*other programs that use it") as caught:
        ledger.reserve(STUDY, "run", 4, "w", cap=CAP)
    assert "newest copy" not in str(caught.value)
    other.execute("ROLLBACK")
    ledger.reserve(STUDY, "run", 4, "w", cap=CAP)


# Schema 1

SCHEMA_1 = """
    CREATE TABLE holds (
        study TEXT NOT NULL, run TEXT NOT NULL, attempts INTEGER NOT NULL, noise_multiplier REAL NOT NULL,
        sampling_rate REAL NOT NULL, steps_per_attempt INTEGER NOT NULL, unit TEXT NOT NULL, at REAL NOT NULL,
        PRIMARY KEY (study, run)
    );
    CREATE TABLE attempts (
        id INTEGER PRIMARY KEY AUTOINCREMENT, study TEXT NOT NULL, run TEXT NOT NULL, round INTEGER NOT NULL,
        weights TEXT NOT NULL, at REAL NOT NULL, FOREIGN KEY (study, run) REFERENCES holds (study, run)
    );
    CREATE TABLE settlements (
        attempt INTEGER PRIMARY KEY REFERENCES attempts (id), reply_sha256 TEXT NOT NULL, at REAL NOT NULL
    );
    CREATE TRIGGER holds_UPDATE BEFORE UPDATE ON holds BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
    CREATE TRIGGER holds_DELETE BEFORE DELETE ON holds BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
    CREATE TRIGGER attempts_UPDATE BEFORE UPDATE ON attempts BEGIN SELECT RAISE(ABORT, 'append-only'); END;
    CREATE TRIGGER attempts_DELETE BEFORE DELETE ON attempts BEGIN SELECT RAISE(ABORT, 'append-only'); END;
    CREATE TRIGGER settlements_UPDATE BEFORE UPDATE ON settlements BEGIN SELECT RAISE(ABORT, 'append-only'); END;
    CREATE TRIGGER settlements_DELETE BEFORE DELETE ON settlements BEGIN SELECT RAISE(ABORT, 'append-only'); END;
    PRAGMA user_version = 1;
"""


def a_ledger_of_schema_1(path: Path, made: PrivacyPlan) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA foreign_keys = ON")
    connection.executescript(SCHEMA_1)
    event = made.event(1)
    values = (made.attempts, event.noise_multiplier, event.sampling_rate, event.steps, event.unit, 1.7e9)
    for run in ("run", "second"):
        connection.execute("INSERT INTO holds VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (STUDY, run, *values))
    for run, number in [("run", 1), ("second", 1), ("run", 2), ("run", 2)]:
        connection.execute(
            "INSERT INTO attempts (study, run, round, weights, at) VALUES (?, ?, ?, ?, ?)",
            (STUDY, run, number, f"w{number}", 1.7e9 + number),
        )
    for attempt in (1, 2, 4):
        connection.execute("INSERT INTO settlements VALUES (?, ?, ?)", (attempt, f"r{attempt}", 1.7e9))
    connection.close()


def test_a_ledger_of_schema_1_becomes_a_chain_and_nothing_is_lost(tmp_path: Path) -> None:
    path, made = tmp_path / "ledger.sqlite3", plan(epsilon=3.0)
    a_ledger_of_schema_1(path, made)
    ledger = Ledger(path)
    told = [(a.id, a.run, a.round, a.weights, a.purpose, a.reply_sha256) for a in ledger.attempts()]
    assert told == [
        (1, "run", 1, "w1", "train", "r1"),
        (2, "second", 1, "w1", "train", "r2"),
        (3, "run", 2, "w2", "train", None),
        (4, "run", 2, "w2", "train", "r4"),
    ]
    assert ledger.events() == [made.event(3), made.event(1)]
    assert ledger.committed(1e-4) == spent([made.event(12)], 1e-4)
    ledger.hold(STUDY, "run", made, CAP)  # the same hold, asked again by the same study
    assert ledger.head().entries == 1 + 2 + 4 + 3
    assert ledger.verify() == Witness(tmp_path / "ledger.head").read()
    assert ledger.reserve(STUDY, "second", 2, "w", cap=CAP) == 5
    ledger.close()
    assert json.loads(rows_of(path)[3][1])["at"] == 1.7e9 + 1
    assert Ledger(path).verify().entries == 11


def test_a_migration_that_is_cut_off_leaves_the_old_ledger(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "ledger.sqlite3"
    a_ledger_of_schema_1(path, plan(epsilon=3.0))
    before, append, calls = path.read_bytes(), LedgerFile.append, []

    def cut_off(self, head, content):
        calls.append(content)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return append(self, head, content)

    monkeypatch.setattr(LedgerFile, "append", cut_off)
    with pytest.raises(KeyboardInterrupt):
        Ledger(path)
    monkeypatch.undo()
    assert path.read_bytes() == before and not (tmp_path / "ledger.head").exists()
    assert len(Ledger(path).attempts()) == 4
