"""A cap that is lowered while runs are in progress: no later attempt exceeds it."""

from __future__ import annotations

import dataclasses
import math
import multiprocessing
from pathlib import Path

import pytest
from builders.broadcasts import broadcast_of
from builders.ledgers import CAP, STUDY, plan
from builders.sites import site_in, study_of

from wardround.accounting import spent
from wardround.errors import BudgetRefusal, PolicyRefusal
from wardround.wire.packets import weights_sha256
from wardround.wire.protocol import EVALUATE, TRAIN
from wardround_client.ledger.ledger import Cap, Ledger
from wardround_client.rounds.training import answer
from wardround_client.site.site import Site


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return site_in(tmp_path)


def lowered(epsilon: float, delta: float = 1e-4) -> Cap:
    return Cap(epsilon=epsilon, delta=delta)


def attempts_under(ledger: Ledger, cap: Cap, run: str = "run", purpose: str = TRAIN, most: int = 6) -> int:
    """Attempt as often as the ledger allows under `cap`; how many attempts that were."""
    for made in range(most):
        try:
            ledger.reserve(STUDY, run, made + 1, "w", purpose, cap=cap)
        except BudgetRefusal as refusal:
            assert refusal.code == "budget"
            return made
    return most


@pytest.mark.parametrize("spent_first", [0, 1, 2])
def test_a_held_run_goes_on_only_as_far_as_a_lowered_cap_allows(spent_first: int) -> None:
    ledger = Ledger(None)
    ledger.hold(STUDY, "run", plan(epsilon=8.0), CAP)
    for number in range(spent_first):
        ledger.reserve(STUDY, "run", number + 1, "w", cap=CAP)
    cap = lowered(6.0)
    ledger.hold(STUDY, "run", plan(epsilon=8.0), cap)  # held already: only an attempt costs something
    made = attempts_under(ledger, cap)
    assert 0 < made < 6 - spent_first and ledger.spent(1e-4).value <= 6.0
    one_more = spent([plan(epsilon=8.0).event(spent_first + made + 1)], 1e-4)
    assert one_more.value > 6.0, "it must stop because of the cap and not before"
    assert attempts_under(ledger, CAP, most=6 - spent_first - made) == 6 - spent_first - made  # raised again: goes on


def test_an_attempt_is_refused_at_once_where_more_is_spent_than_the_lowered_cap() -> None:
    ledger = Ledger(None)
    ledger.hold(STUDY, "run", plan(), CAP)
    ledger.reserve(STUDY, "run", 1, "w", cap=CAP)
    before = ledger.head()
    with pytest.raises(BudgetRefusal, match=r"above this site's cap of epsilon 1 at delta 0.0001 \(site.toml\)"):
        ledger.reserve(STUDY, "run", 2, "w", cap=lowered(1.0))
    assert ledger.head() == before


def test_other_holds_count_as_far_as_they_are_spent_and_no_attempt_of_any_run_exceeds_the_cap() -> None:
    ledger = Ledger(None)
    ledger.hold(STUDY, "one", plan(epsilon=4.0), CAP)
    ledger.hold(STUDY, "two", plan(epsilon=3.0), CAP, runs=2)
    cap = lowered(3.5)
    made = [attempts_under(ledger, cap, run, most=3) for run in ("one", "two")]
    assert made[0] == 3 and 0 < made[1] <= 3
    attempts_under(ledger, cap, "one", most=3), attempts_under(ledger, cap, "two", most=3)
    assert 2.5 < ledger.spent(1e-4).value <= 3.5


def test_a_lowered_cap_holds_for_evaluations_too() -> None:
    ledger = Ledger(None)
    ledger.hold(STUDY, "run", plan(epsilon=4.0, evaluation=1.5), CAP)
    assert attempts_under(ledger, lowered(2.0), purpose=EVALUATE, most=2) == 1
    assert ledger.spent(1e-4).value <= 2.0


def test_a_lowered_delta_holds_for_held_runs_too() -> None:
    ledger = Ledger(None)
    ledger.hold(STUDY, "run", plan(), CAP)
    with pytest.raises(PolicyRefusal) as caught:
        ledger.hold(STUDY, "run", plan(), lowered(8.0, 1e-7))
    assert caught.value.code == "delta"
    made = attempts_under(ledger, lowered(8.0, 1e-7))
    assert 0 < made < 6 and ledger.spent(1e-7).value <= 8.0 < ledger.spent(1e-7).value * (made + 1) / made


@pytest.mark.parametrize(("epsilon", "evaluation"), [(math.inf, 0.0), (4.0, math.inf)])
@pytest.mark.parametrize("purpose", [TRAIN, EVALUATE])
def test_a_run_without_privacy_ends_when_the_site_allows_it_no_more(epsilon, evaluation, purpose) -> None:
    ledger, asked = Ledger(None), plan(epsilon=epsilon, evaluation=evaluation or 0.5)
    allowing = Cap(epsilon=8.0, delta=1e-4, allow_no_privacy=True)
    ledger.hold(STUDY, "run", asked, allowing)
    ledger.reserve(STUDY, "run", 1, "w", purpose, cap=allowing)
    for call in (
        lambda: ledger.hold(STUDY, "run", asked, CAP),
        lambda: ledger.reserve(STUDY, "run", 2, "w", purpose, cap=CAP),
    ):
        with pytest.raises(PolicyRefusal) as caught:
            call()
        assert caught.value.code == "no_privacy"
    assert len(ledger.attempts()) == 1


def test_a_site_whose_cap_is_not_lowered_attempts_all_that_it_held() -> None:
    """The figure at the last attempt is the figure at which the hold was admitted, bit for bit."""
    ledger, asked = Ledger(None), plan(epsilon=6.0, evaluation=0.5)
    exact = Cap(epsilon=Ledger(None).what_if(asked, CAP).after.value, delta=1e-4)
    ledger.hold(STUDY, "run", asked, exact)
    assert attempts_under(ledger, exact, purpose=EVALUATE, most=2) == 2 and attempts_under(ledger, exact) == 6
    assert ledger.spent(1e-4).value == exact.epsilon


def _attempt(path: str, run: str, barrier, pipe) -> None:
    ledger = Ledger(Path(path))
    barrier.wait(60)
    pipe.send(attempts_under(ledger, lowered(4.0), run))


def test_two_processes_that_attempt_at_once_do_not_pass_the_lowered_cap_together(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite3"
    ledger = Ledger(path)
    ledger.hold(STUDY, "one", plan(epsilon=4.0), CAP)
    ledger.hold(STUDY, "two", plan(epsilon=4.0), CAP, runs=2)
    context = multiprocessing.get_context("fork")
    barrier, pipes = context.Barrier(2), [context.Pipe(duplex=False) for _ in range(2)]
    for run, (_, sender) in zip(("one", "two"), pipes, strict=True):
        context.Process(target=_attempt, args=(str(path), run, barrier, sender)).start()
    made = [receiver.recv() for receiver, _ in pipes]
    assert sum(made) == len(ledger.attempts()) and 3.0 < ledger.spent(1e-4).value <= 4.0


def test_a_round_under_a_lowered_cap_reads_no_image_and_what_was_settled_is_sent_again(site) -> None:
    message = broadcast_of(study_of())
    first = answer(message, site)

    def read(_):
        pytest.fail("data were read")  # no `Exception`, which a round would answer with noise alone

    low = dataclasses.replace(site, cap=lowered(1.0), material_of=read, materials={})
    with pytest.raises(BudgetRefusal) as caught:
        answer(broadcast_of(study_of(), 2), low)
    assert caught.value.code == "budget" and len(site.ledger.attempts()) == 1
    assert weights_sha256(answer(message, low).weights) == weights_sha256(first.weights)
