"""The ledger: held before anything is read, charged before training, settled before sending, and never above the
cap.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import sqlite3
import time
from pathlib import Path

import pytest

from wardround.accounting import calibrate_noise
from wardround.errors import BudgetRefusal, LedgerError, PolicyRefusal
from wardround_client.privacy.ledger import Cap, Ledger
from wardround_client.privacy.plan import PrivacyPlan

CAP = Cap(epsilon=8.0, delta=1e-4)
STUDY, OTHER = "a" * 64, "b" * 64


def plan(epsilon: float = 8.0, delta: float = 1e-4, rounds: int = 5, spare: int = 1) -> PrivacyPlan:
    noise = calibrate_noise(epsilon=epsilon, delta=delta, sampling_rate=1.0, steps=rounds + spare)
    return PrivacyPlan(
        epsilon_asked=epsilon,
        delta=delta,
        sampling_rate=1.0,
        images_per_patient=None,
        max_grad_norm=1.0,
        noise_multiplier=noise,
        nominal_patients=10,
        rounds=rounds,
        spare_rounds=spare,
        local_steps=1,
    )


def test_a_study_above_the_cap_is_refused_and_leaves_no_trace(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite3")
    with pytest.raises(BudgetRefusal, match="cap of epsilon 1"):
        ledger.hold(STUDY, "run", plan(epsilon=2.0), Cap(epsilon=1.0, delta=1e-4))
    assert ledger.committed(1e-4).value == 0
    with pytest.raises(LedgerError, match="no budget is held"):
        ledger.reserve(STUDY, "run", 1, "w")


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
        ledger.hold(STUDY, "second", plan(epsilon=7.0), CAP)


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
        ledger.reserve(STUDY, "run", 1 if number == 0 else number, "w")
        assert sum(event.steps for event in ledger.events()) == number + 1
    with pytest.raises(BudgetRefusal) as caught:
        ledger.reserve(STUDY, "run", 5, "w")
    assert caught.value.code == "no_spare_rounds"
    assert 7.9 < ledger.spent(1e-4).value <= 8.0


def test_a_settled_round_is_found_again_and_other_weights_are_refused() -> None:
    ledger = Ledger(None)
    ledger.hold(STUDY, "run", plan(), CAP)
    assert ledger.settled(STUDY, "run", 1, "w") is None
    attempt = ledger.reserve(STUDY, "run", 1, "w")
    assert ledger.settled(STUDY, "run", 1, "w") is None
    with pytest.raises(PolicyRefusal, match="other weights"):
        ledger.settled(STUDY, "run", 1, "v")
    ledger.settle(attempt, "reply")
    found = ledger.settled(STUDY, "run", 1, "w")
    assert found is not None and found.reply_sha256 == "reply"
    with pytest.raises(sqlite3.IntegrityError):
        ledger.settle(attempt, "another reply")


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE attempts SET round = 9",
        "DELETE FROM attempts",
        "DELETE FROM holds",
        "UPDATE holds SET noise_multiplier = 99",
    ],
)
def test_the_tables_are_append_only(tmp_path: Path, statement: str) -> None:
    path = tmp_path / "ledger.sqlite3"
    ledger = Ledger(path)
    ledger.hold(STUDY, "run", plan(), CAP)
    ledger.reserve(STUDY, "run", 1, "w")
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


def _attempt_forever(path: str, ready) -> None:
    ledger = Ledger(Path(path))
    ready.set()
    number = 0
    while True:
        number += 1
        attempt = ledger.reserve(STUDY, "run", number, "w")
        Path(f"{path}.trained").write_text(str(number))  # stands for what training does after the charge
        ledger.settle(attempt, f"reply {number}")
        Path(f"{path}.sent").write_text(str(number))  # stands for the reply that is sent after the settlement


@pytest.mark.parametrize("kill", range(6))
def test_a_kill_at_any_point_loses_no_charge(tmp_path: Path, kill: int) -> None:
    """Killed with SIGKILL at a random moment: what was trained was charged, what was sent was settled."""
    path = tmp_path / "ledger.sqlite3"
    Ledger(path).hold(STUDY, "run", plan(epsilon=8.0, rounds=100_000), CAP)
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    worker = context.Process(target=_attempt_forever, args=(str(path), ready), daemon=True)
    worker.start()
    assert ready.wait(60)
    time.sleep(0.05 + 0.037 * kill)
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    attempts = Ledger(path).attempts()
    trained = Path(f"{path}.trained").read_text() if Path(f"{path}.trained").exists() else ""
    sent = Path(f"{path}.sent").read_text() if Path(f"{path}.sent").exists() else ""
    assert [attempt.round for attempt in attempts] == list(range(1, len(attempts) + 1))
    assert len(attempts) >= int(trained or 0)
    assert sum(attempt.reply_sha256 is not None for attempt in attempts) >= int(sent or 0)
    assert sum(event.steps for event in Ledger(path).events()) == len(attempts)


def _reserve_some(path: str, name: str) -> None:
    ledger = Ledger(Path(path))
    for number in range(20):
        ledger.reserve(STUDY, "run", number + 1, name)


def test_two_processes_share_a_ledger_without_losing_an_event(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite3"
    Ledger(path).hold(STUDY, "run", plan(rounds=1000), CAP)
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_reserve_some, args=(str(path), name)) for name in ("v", "w")]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0
    assert len(Ledger(path).attempts()) == 40
