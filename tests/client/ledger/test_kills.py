"""kill -9 of a process that holds, charges, settles and sends repeatedly: the ledger afterwards contains all of it.

The moments are drawn anew in every call of the tests, and the seed is printed. The killed process is a fork of this
process, so that a thousand kills take minutes.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
import traceback
from collections import Counter
from pathlib import Path

import pytest

from wardround.accounting import calibrate_noise
from wardround.errors import BudgetRefusal
from wardround.records.chain import Witness
from wardround_client.ledger.ledger import Cap, Ledger
from wardround_client.privacy.plan import PrivacyPlan

STUDY = "a" * 64
CAP = Cap(epsilon=30.0, delta=1e-4)
PLAN = PrivacyPlan(
    epsilon_asked=0.4,
    delta=1e-4,
    sampling_rate=1.0,
    images_per_patient=None,
    max_grad_norm=1.0,
    noise_multiplier=calibrate_noise(epsilon=0.4, delta=1e-4, sampling_rate=1.0, steps=6),
    nominal_patients=10,
    rounds=4,
    spare_rounds=2,
    local_steps=1,
    evaluation_epsilon=0.05,
)


def tell(folder: Path, name: str, *words: object) -> None:
    """One line, as far as a kill lets it: what the process did to the world beside the ledger."""
    with (folder / name).open("a") as file:
        file.write(json.dumps(words) + "\n")


def told(folder: Path, name: str) -> list[list]:
    lines = (folder / name).read_text().splitlines() if (folder / name).exists() else []
    return [json.loads(line) for line in lines]


def ask(ledger: Ledger, folder: Path, run: str, number: int, purpose: str) -> None:
    """One question in the order of `round.py`: settled already, or charged, looked at, settled; then sent."""
    found = ledger.settled(STUDY, run, number, "w", purpose)
    if found is None:
        attempt = ledger.reserve(STUDY, run, number, "w", purpose, cap=CAP)
        tell(folder, "looked", attempt)
        reply = f"{os.urandom(8).hex()}"
        ledger.settle(attempt, reply)
    else:
        attempt, reply = found.id, found.reply_sha256
    head = ledger.head()
    tell(folder, "sent", attempt, run, number, purpose, reply, head.entries, head.sha256)


def site(folder: Path, ready: int) -> None:
    """A site whose server starts the same runs again after every kill. The cap is far away."""
    ledger = Ledger(folder / "ledger.sqlite3")
    os.write(ready, b".")
    for run in range(10**6):
        try:
            ledger.hold(STUDY, f"run-{run}", PLAN, CAP, runs=10**6)
            for number in range(1, 5):
                ask(ledger, folder, f"run-{run}", number, "train")
            ask(ledger, folder, f"run-{run}", 5, "evaluate")
        except BudgetRefusal as refusal:
            if refusal.code == "budget":
                raise
            ledger.release(STUDY, f"run-{run}", "the officer")  # no spare attempt is left


def start_and_kill(folder: Path, draw: random.Random, longest_s: float) -> None:
    """Start a site and kill it while it opens its ledger, or up to `longest_s` after it did."""
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        try:
            site(folder, writing)
        except BaseException:
            traceback.print_exc()
        os._exit(1)
    os.close(writing)
    if draw.random() < 0.9:
        os.read(reading, 1)
    time.sleep(draw.uniform(0, longest_s))
    os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    os.close(reading)
    assert os.WIFSIGNALED(status), "the site ended by itself; its error is printed above"


def check(folder: Path) -> Counter:
    """Everything that must hold, whatever was killed where; returns what happened."""
    ledger = Ledger(folder / "ledger.sqlite3")
    assert ledger.verify() == ledger.head() == Witness(folder / "ledger.head").read()
    attempts = {attempt.id: attempt for attempt in ledger.attempts()}
    assert list(attempts) == list(range(1, len(attempts) + 1))
    assert sum(event.releases for event in ledger.events()) == len(attempts), "events are not attempts"
    looked = [attempt for (attempt,) in told(folder, "looked")]
    assert len(set(looked)) == len(looked) and set(looked) <= set(attempts), "patients were looked at without a charge"
    replies: dict[tuple, set] = {}
    entries = 0
    for number, run, round_, purpose, reply, seen, _ in told(folder, "sent"):
        attempt = attempts[number]
        assert (attempt.run, attempt.round, attempt.purpose, attempt.reply_sha256) == (run, round_, purpose, reply)
        replies.setdefault((run, round_, purpose), set()).add(reply)
        assert seen >= entries, "a server would have seen the ledger go back"
        entries = seen
    assert entries <= ledger.head().entries
    assert all(len(different) == 1 for different in replies.values()), "one question got two answers"
    settled = Counter((a.run, a.round, a.purpose) for a in attempts.values() if a.reply_sha256 is not None)
    assert set(settled.values()) <= {1}, "one question was settled twice"
    promised = PLAN.promised().value
    for hold in ledger.holds():
        train = ledger.spent(1e-4, hold.run, "train").value
        assert train <= promised <= 0.4 and hold.used["train"] <= 6 and hold.used["evaluate"] <= 2
    assert ledger.spent(1e-4).value <= ledger.committed(1e-4).value <= CAP.epsilon
    lost = sum(attempt.reply_sha256 is None for attempt in attempts.values())
    ledger.close()
    return Counter(attempts=len(attempts), lost=lost, sent=len(told(folder, "sent")), entries=entries)


def kill_often(folders: list[Path], kills: int, longest_s: float) -> Counter:
    seed = random.SystemRandom().randrange(10**6)
    draw, found = random.Random(seed), Counter()
    for folder in folders:
        folder.mkdir()
        Ledger(folder / "warm-up.sqlite3").hold(STUDY, "run", PLAN, CAP)  # what a fork need not load again
        for _ in range(kills // len(folders)):
            start_and_kill(folder, draw, longest_s)
        found += check(folder)
    print(f"seed {seed}: {kills} kills, {dict(found)}")
    return found


def test_a_kill_at_any_point_loses_no_charge(tmp_path: Path) -> None:
    found = kill_often([tmp_path / "site"], 40, 0.1)
    assert found["attempts"] > 20 and found["lost"] > 0 and found["sent"] > 0


@pytest.mark.slow
def test_after_a_thousand_kills_events_are_attempts_and_each_reply_has_one(tmp_path: Path) -> None:
    found = kill_often([tmp_path / f"site-{number}" for number in range(20)], 1000, 0.2)
    assert found["attempts"] > 1000 and found["lost"] > 100
