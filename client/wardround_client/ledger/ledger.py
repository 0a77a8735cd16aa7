"""The ledger: a site's record of the privacy spent on its patients, across all studies, in one append-only file.

A study's whole budget is *held* at admission. Each *attempt* is one privacy event, durable before any patient's data
are read. Each reply is *settled* before it is sent. The number of events therefore equals the number of attempts. A
crash between attempt and reply leaves an attempt that is charged and lost, and its retry uses one of the spare
attempts. Epsilon is computed from the events on request; the ledger stores no epsilon.

`file.py` contains the file with its chain of hashes (`wardround.records.chain`); `book.py` interprets the entries.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from wardround.accounting import Epsilon, Event, spent
from wardround.errors import BudgetRefusal, LedgerError, PolicyRefusal, RefusedError
from wardround.records.chain import START
from wardround.study.load import Study
from wardround.wire.packets import LedgerHead
from wardround.wire.protocol import TRAIN
from wardround_client.ledger.book import Attempt, Book, Hold, share_to_json
from wardround_client.ledger.file import LOWEST, LedgerFile
from wardround_client.privacy.plan import EVALUATION_ATTEMPTS, PrivacyPlan

_MOST_ROUNDS = 2**20  # upper limit of the search in `what_if`


@dataclass(frozen=True, kw_only=True)
class Cap:
    """The maximum privacy that a site spends on its patients, over all studies.

    `allow_no_privacy` admits studies with epsilon = inf.
    """

    epsilon: float
    delta: float
    allow_no_privacy: bool = False


def cap_of(study: Study) -> Cap:
    """Return a cap under which a site can hold this study and nothing else.

    It is the sum of the epsilons of training, of every attempt of the evaluation, and of the personalisation. All of
    them together never cost more than the sum.
    """
    evaluation = EVALUATION_ATTEMPTS * study.evaluation.epsilon
    personal = 0.0 if study.personalisation is None else study.personalisation.epsilon
    epsilon = study.privacy.epsilon + evaluation + personal
    return Cap(epsilon=epsilon, delta=study.privacy.delta, allow_no_privacy=math.isinf(epsilon))


@dataclass(frozen=True, kw_only=True)
class WhatIf:
    """The cost of a study. `now` and `after` count everything held, spent or not, at the cap's delta.

    Attributes:
        rounds_affordable: Number of rounds that may be attempted under the cap, with the study's noise and its
            evaluation; None if there is no limit, because the study promises no privacy and the site allows that.
        refusal: The error that `hold` would raise, or None if it would hold the budget.
    """

    now: Epsilon
    after: Epsilon
    remaining: Epsilon
    rounds_asked: int
    rounds_affordable: int | None
    refusal: RefusedError | None


class Ledger:
    """One site's ledger. Every call is one durable transaction; several processes may have the same file open."""

    def __init__(self, path: Path | None, lost: bool = False) -> None:
        """Open or create the ledger, and verify its whole chain.

        Args:
            path: The file; None keeps the ledger in memory, for simulations that compare recipes.
            lost: Open the ledger for `accept_loss`, which must be the first call that changes it.

        Raises:
            LedgerError: The ledger is damaged, altered, of a newer schema, or older than `ledger.head` beside it.
        """
        self._file = LedgerFile(path, lost)
        self._book, self._head = Book(), START
        self._read()
        self._file.hold_against_witness(self._head)

    def close(self) -> None:
        self._file.close()

    def _read(self) -> None:
        """Apply the entries that this process or another one has appended since the last call."""
        rows = self._file.rows(self._head.entries or LOWEST)
        if self._head.entries:
            number, _, sha256 = rows.pop(0) if rows else (0, "", "")
            if (number, sha256) != (self._head.entries, self._head.sha256):
                raise LedgerError(f"{self._file.place}: was replaced while it was open; start this program again")
        for head, entry in self._file.walked(rows, self._head):
            try:
                self._book.fold(entry)
            except LedgerError as error:
                raise LedgerError(f"{self._file.place}: entry {head.entries}: {error}") from None
            self._head = head

    def head(self) -> LedgerHead:
        """Return the number of entries and the hash that chains them.

        The head is sent to the server, so that an old copy is detected.
        """
        self._read()
        return self._head

    def shown(self) -> tuple[LedgerHead, str]:
        """Return the data about this ledger in an `Answer`: its head, and the hashes that link it to earlier heads."""
        head = self.head()
        return head, self._file.recent(head)

    def verify(self) -> LedgerHead:
        """Read the whole file again and check it (`LedgerFile.verified`).

        Raises:
            LedgerError: A check failed. The message names the fault.
        """
        head = self._file.verified()
        self._read()
        return head

    def hold(self, study: str, run: str, plan: PrivacyPlan, cap: Cap, runs: int = 1) -> None:
        """Hold the whole study's budget, spare attempts included, before any image is read.

        A repeated call for the same run changes nothing; `reserve` checks whether a cap that was lowered since allows
        one more attempt.

        Guarantee: at most `runs` runs of the study ever hold anything here, however their names are chosen and however
        many processes call this at once. A run that was released or lost counts; a run that already holds its budget
        continues.

        Raises:
            PolicyRefusal: The study's runs are used up, its delta is above the cap's, or it has no privacy and the cap
                does not allow that.
            BudgetRefusal: All events of the ledger, all other holds and this study together would exceed the cap.
            LedgerError: The run already holds a different plan.
        """
        with self._file.transaction():
            self._read()
            held = self._book.holds.get((study, run))
            if held is not None and held.shares != plan.shares():
                raise LedgerError(
                    f"{self._file.place}: this run holds budget for another plan: the study or the accountant changed"
                )
            begun = self._book.runs_of(study)
            if held is None and begun >= runs:
                counts = f"approved runs of this study: {runs}, begun: {begun}"
                advice = f"`wardround-site studies approve {study[:12]} --runs {begun + 1}` allows one more"
                raise PolicyRefusal("runs_used", f"{counts}; {advice}")
            refusal = self._refusal(plan, cap, [] if held else plan.events())
            if refusal is not None:
                raise refusal
            if held is None:
                shares = {purpose: share_to_json(share) for purpose, share in plan.shares().items()}
                self._file.append(self._head, {"kind": "hold", "study": study, "run": run, "shares": shares})

    def _refusal(self, plan: PrivacyPlan, cap: Cap, more: list[Event]) -> RefusedError | None:
        """Return the reason why this plan, which requests `more` events, may not be held; None if it may."""
        if not plan.private and not cap.allow_no_privacy:
            return _no_privacy()
        if plan.delta > cap.delta:
            text = f"the study's delta {plan.delta:g} is above this site's {cap.delta:g} (site.toml)"
            return PolicyRefusal("delta", text)
        if not more:
            return None
        before, after = self._capped([], cap), self._capped(more, cap)
        if after.value > cap.epsilon:
            return BudgetRefusal(
                "budget",
                f"the study would bring this site to {after.value:.3g} of its cap of epsilon {cap.epsilon:g} "
                f"(spent or held: {before.value:.3g}); give back what finished runs still hold "
                "(`wardround-site ledger release`), ask for a smaller epsilon or fewer runs, or raise the cap in "
                "site.toml",
            )
        return None

    def _capped(self, more: list[Event], cap: Cap) -> Epsilon:
        """Return the epsilon that counts against the cap, with `more` events added.

        Studies without privacy, which the site allowed explicitly, have no finite epsilon and are left out.
        """
        return spent([event for event in [*self._committed(), *more] if event.private], cap.delta)

    def what_if(self, plan: PrivacyPlan, cap: Cap, runs: int = 1) -> WhatIf:
        """Return the present cost of the ledger and its cost after `runs` new runs of this study.

        Also returns how many rounds of one run the cap allows.
        """
        self._read()
        now = self._capped([], cap)
        more = [event.repeated(runs) for event in plan.events()] if runs else []
        return WhatIf(
            now=now,
            after=spent([*self._committed(), *more], cap.delta),
            remaining=self.remaining(cap),
            rounds_asked=plan.attempts,
            rounds_affordable=self._rounds_affordable(plan, cap),
            refusal=self._refusal(plan, cap, more),
        )

    def remaining(self, cap: Cap) -> Epsilon:
        """Return the rest of the cap.

        Epsilons do not add up exactly; use `what_if` to compute what a study may still cost.
        """
        self._read()
        now = self._capped([], cap)
        return Epsilon(value=max(0.0, cap.epsilon - now.value), delta=cap.delta, accountant=now.accountant)

    def _rounds_affordable(self, plan: PrivacyPlan, cap: Cap) -> int | None:
        if self._refusal(plan, cap, []) is not None:
            return 0
        if not plan.event(1).private:
            return None
        shares = plan.shares()
        train = shares.pop(TRAIN)
        others = [event for share in shares.values() for event in share.events(share.attempts)]

        def affordable(rounds: int) -> bool:
            return self._capped([*others, *train.events(rounds)], cap).value <= cap.epsilon

        if not affordable(1):
            return 0
        high = 2
        while affordable(high) and high < _MOST_ROUNDS:
            high *= 2
        low = high // 2
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if affordable(middle) else (low, middle)
        return low

    def settled(self, study: str, run: str, round_: int, weights: str, purpose: str = TRAIN) -> Attempt | None:
        """Return the settled attempt of this round with these weights, or None.

        The reply of a settled attempt may be sent again without a charge.

        Raises:
            PolicyRefusal: The same round was attempted with other weights. Two answers would be two releases for the
                price of one, and would reveal to the server how the patients move the weights.
        """
        found = [a for a in self.attempts(study, run) if (a.round, a.purpose) == (round_, purpose)]
        if any(attempt.weights != weights for attempt in found):
            raise PolicyRefusal("other_weights", f"round {round_} was already attempted with other weights")
        return next((attempt for attempt in found if attempt.reply_sha256 is not None), None)

    def reserve(self, study: str, run: str, round_: int, weights: str, purpose: str = TRAIN, *, cap: Cap) -> int:
        """Charge one attempt to the hold, durably, before any patient's data are read. Return the attempt's number.

        Guarantee: no attempt is charged that brings the attempts of all runs, this one included, above `cap`, which may
        have been lowered since the budget was held.

        An evaluation (`purpose` EVALUATE) counts as the round after the study's last one. If the attempt is refused,
        the site does not take part in this round.

        Raises:
            BudgetRefusal: The hold has no such attempt left or was released, or the cap does not allow the attempt.
            PolicyRefusal: The run has no privacy and the site no longer allows that.
        """
        with self._file.transaction():
            self._read()
            hold = self._book.hold_of(study, run)
            if hold.released_by is not None:
                raise BudgetRefusal("released", f"the hold of this run was released by {hold.released_by}")
            if hold.attempts_left.get(purpose, 0) < 1:
                held = hold.shares[purpose].attempts if purpose in hold.shares else 0
                code = "no_spare_rounds" if purpose == TRAIN else "no_spare_attempts"
                text = f"all {held} attempts of this run to {purpose} are used; the site skips round {round_}"
                raise BudgetRefusal(code, text)
            self._require_below(cap, hold, purpose)
            number = self._book.next_attempt
            content = {"id": number, "study": study, "run": run, "round": round_, "weights": weights}
            self._file.append(self._head, {"kind": "attempt", "purpose": purpose, **content})
        return number

    def _require_below(self, cap: Cap, hold: Hold, purpose: str) -> None:
        """Raise `BudgetRefusal` or `PolicyRefusal` unless `cap` allows one more attempt of `hold`.

        The unspent budget of other runs does not count: each of their attempts is checked when it is made.
        """
        if not cap.allow_no_privacy and not all(share.event.private for share in hold.shares.values()):
            raise _no_privacy()
        next_one = replace(hold, used={**hold.used, purpose: hold.used[purpose] + 1})
        holds = [next_one if one is hold else one for one in self._book.holds.values()]
        after = spent([event for one in holds for event in one.spent() if event.private], cap.delta)
        if after.value > cap.epsilon:
            text = (
                f"this attempt would raise the epsilon spent to {after.value:.3g}, above this site's cap of epsilon "
                f"{cap.epsilon:g} at delta {cap.delta:g} (site.toml), which was lowered since; the run continues if "
                "the cap is raised again, and `wardround-site ledger release` releases what it still holds"
            )
            raise BudgetRefusal("budget", text)

    def settle(self, attempt: int, reply_sha256: str) -> None:
        """Record that the attempt's reply is on disk. From then on the reply may be sent, any number of times.

        Raises:
            LedgerError: The attempt is settled already, or was never made.
        """
        with self._file.transaction():
            self._read()
            known = self._book.attempts.get(attempt)
            if known is None or known.reply_sha256 is not None:
                raise LedgerError(f"{self._file.place}: attempt {attempt} is already settled, or was never recorded")
            self._file.append(self._head, {"kind": "settled", "id": attempt, "reply_sha256": reply_sha256})

    def release(self, study: str, run: str, who: str) -> Hold:
        """Give back the unused part of a hold and return the hold.

        The attempts of the run stay charged, and no other attempt is ever made for it. Settled replies may still be
        sent again. A repeated call changes nothing.

        Raises:
            LedgerError: This run holds nothing.
        """
        with self._file.transaction():
            self._read()
            if self._book.hold_of(study, run).released_by is None:
                self._file.append(self._head, {"kind": "released", "study": study, "run": run, "who": who})
        self._read()
        return self._book.hold_of(study, run)

    def accept_loss(self, who: str, unknown: Mapping[tuple[str, str], PrivacyPlan]) -> LedgerHead:
        """Continue from this copy although later entries are lost permanently. Return the new head.

        Guarantee: the recorded spending is at least the true spending, provided that `unknown` contains every run
        (study, run) that began after this copy was made. Each hold of this copy and of those runs is charged in full,
        whatever the cap, because the lost entries can have used no more; and no attempt is ever made for these runs
        again.
        """
        with self._file.transaction():
            self._read()
            head = self._head
            for (study, run), plan in unknown.items():
                if (study, run) not in self._book.holds:
                    shares = {purpose: share_to_json(share) for purpose, share in plan.shares().items()}
                    content = {"kind": "hold", "study": study, "run": run, "shares": shares}
                    head = self._file.append(head, content)
            self._file.append(head, {"kind": "lost", "who": who})
        self._read()
        self._file.forget(self._head)
        return self._head

    def runs_of(self, study: str) -> int:
        """Return how many runs of a study ever held anything here, including released and lost ones."""
        self._read()
        return self._book.runs_of(study)

    def holds(self) -> list[Hold]:
        """Return all holds in their order, including released ones."""
        self._read()
        return list(self._book.holds.values())

    def attempts(self, study: str | None = None, run: str | None = None) -> list[Attempt]:
        """Return all attempts in their order, or those of one study and run."""
        self._read()
        if study is not None and run is not None:
            return self._book.attempts_of(study, run)
        return [a for a in self._book.attempts.values() if study in (None, a.study) and run in (None, a.run)]

    def events(self, run: str | None = None, purpose: str | None = None) -> list[Event]:
        """Return the privacy events of all attempts, or those of one run or one purpose.

        There is one event per hold and purpose.
        """
        return [event for hold in self.holds() if run in (None, hold.run) for event in hold.spent(purpose)]

    def _committed(self) -> list[Event]:
        return [event for hold in self._book.holds.values() for event in hold.committed()]

    def spent(self, delta: float, run: str | None = None, purpose: str | None = None) -> Epsilon:
        """Return the epsilon of all attempts so far, settled or lost, at `delta`, or of one run or one purpose."""
        return spent(self.events(run, purpose), delta)

    def committed(self, delta: float, more: Iterable[Event] = ()) -> Epsilon:
        """Return the epsilon of everything held, spent or not, and of `more` events, at `delta`.

        It is inf if a study without privacy holds a budget.
        """
        self._read()
        return spent([*self._committed(), *more], delta)


def _no_privacy() -> PolicyRefusal:
    text = "the study asks for epsilon = inf; this site does not allow_no_privacy (site.toml)"
    return PolicyRefusal("no_privacy", text)
