"""The ledger: a site's record of the privacy spent on its patients, across all studies, in one append-only file.

A study's whole budget is *held* at admission; each *attempt* is one privacy event, durable before a patient is looked
at; each reply is *settled* before it is sent. So events = attempts; a crash between the two leaves an attempt that is
charged and lost, and its retry draws on the spare ones. Epsilon is computed from the events when asked for; the ledger
stores none. Below it lie the file with its chain of hashes (`ledger_file`, `chain`) and the meaning of the
entries (`ledger_book`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
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

_MOST_ROUNDS = 2**20  # where what-if stops to count


@dataclass(frozen=True, kw_only=True)
class Cap:
    """The most that a site spends on its patients, over all studies. `allow_no_privacy` admits studies of epsilon =
    inf.
    """

    epsilon: float
    delta: float
    allow_no_privacy: bool = False


def cap_of(study: Study) -> Cap:
    """The smallest cap under which a site holds this study and nothing else: training, and every evaluation."""
    evaluation = EVALUATION_ATTEMPTS * study.evaluation.epsilon
    no_privacy = math.isinf(study.privacy.epsilon) or math.isinf(evaluation)
    return Cap(epsilon=study.privacy.epsilon + evaluation, delta=study.privacy.delta, allow_no_privacy=no_privacy)


@dataclass(frozen=True, kw_only=True)
class WhatIf:
    """What a study would cost. `now` and `after` count everything held, spent or not, at the cap's delta.

    `rounds_affordable`: how many rounds may be attempted under the cap, with the study's noise and its evaluation; None
    where nothing limits them, because the study promises no privacy and the site allows that. `refusal`: what `hold`
    would raise, None where it would hold.
    """

    now: Epsilon
    after: Epsilon
    remaining: Epsilon
    rounds_asked: int
    rounds_affordable: int | None
    refusal: RefusedError | None


class Ledger:
    """One site's ledger. Every call is one durable transaction; several processes may hold the same file."""

    def __init__(self, path: Path | None, lost: bool = False) -> None:
        """Open or create the ledger, and walk its whole chain. `None` keeps it in memory, for simulations that compare
        recipes. `lost`: for `accept_loss` alone, and nothing else may be done with such a one before.

        Raises `LedgerError` where it is damaged, altered, of a newer schema, or older than `ledger.head` beside it.
        """
        self._file = LedgerFile(path, lost)
        self._book, self._head = Book(), START
        self._read()
        self._file.hold_against_witness(self._head)

    def close(self) -> None:
        self._file.close()

    def _read(self) -> None:
        """Take in what was appended since, by this process or another one."""
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
        """How many entries there are and the hash that chains them: what travels, so that an old copy is noticed."""
        self._read()
        return self._head

    def shown(self) -> tuple[LedgerHead, str]:
        """What an answer shows of this ledger: its head, and the hashes that link it to earlier heads (`Answer`)."""
        head = self.head()
        return head, self._file.recent(head)

    def verify(self) -> LedgerHead:
        """Read the whole file again and check it (`LedgerFile.verified`). Raises `LedgerError` naming the fault."""
        head = self._file.verified()
        self._read()
        return head

    def hold(self, study: str, run: str, plan: PrivacyPlan, cap: Cap, runs: int = 1) -> None:
        """Hold the whole study's budget, spare attempts included, before any image is read. Asked again: nothing
        changes; whether a cap that was lowered since allows one more attempt is checked by `reserve`.

        Guarantee: at most `runs` runs of the study ever hold anything here, whoever chose their names and however many
        processes ask at once. A run that was released or lost counts; one that holds already goes on.

        Raises `PolicyRefusal` where the study's runs are used up, or its delta or its lack of privacy is against the
        cap, and `BudgetRefusal` where all events of the ledger, all other holds and this study together would exceed
        it.
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
                told = f"approved runs of this study: {runs}, begun: {begun}"
                mend = f"`wardround-site studies approve {study[:12]} --runs {begun + 1}` allows one more"
                raise PolicyRefusal("runs_used", f"{told}; {mend}")
            refusal = self._refusal(plan, cap, [] if held else plan.events())
            if refusal is not None:
                raise refusal
            if held is None:
                shares = {purpose: share_to_json(share) for purpose, share in plan.shares().items()}
                self._file.append(self._head, {"kind": "hold", "study": study, "run": run, "shares": shares})

    def _refusal(self, plan: PrivacyPlan, cap: Cap, more: list[Event]) -> RefusedError | None:
        """Why this plan may not be held, or None: the gate, at which `more` events are asked for."""
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
                f"(spent or held: {before.value:.3g}); ask for a smaller epsilon or fewer runs, or raise the cap in "
                "site.toml",
            )
        return None

    def _capped(self, more: list[Event], cap: Cap) -> Epsilon:
        """What counts against the cap. Studies without privacy, which the site allowed by name, have no figure."""
        return spent([event for event in [*self._committed(), *more] if event.private], cap.delta)

    def what_if(self, plan: PrivacyPlan, cap: Cap, runs: int = 1) -> WhatIf:
        """What may still be spent, what `runs` new runs of this study would make of it, and how many of the rounds of
        one run that is.
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
        """What is left of the cap. Epsilons do not add up exactly: what a study may still cost says `what_if`."""
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
        """The settled attempt of this round with these weights, whose reply may be sent again without a charge.

        Raises `PolicyRefusal` where the same round was attempted with other weights: two answers would be two releases
        for the price of one, and tell the server how the patients move them.
        """
        found = [a for a in self.attempts(study, run) if (a.round, a.purpose) == (round_, purpose)]
        if any(attempt.weights != weights for attempt in found):
            raise PolicyRefusal("other_weights", f"round {round_} was already attempted with other weights")
        return next((attempt for attempt in found if attempt.reply_sha256 is not None), None)

    def reserve(self, study: str, run: str, round_: int, weights: str, purpose: str = TRAIN, *, cap: Cap) -> int:
        """Charge one attempt to the hold, durably, before a patient is looked at. Returns its number.

        Guarantee: no attempt is charged that brings the attempts of all runs, this one included, above `cap`, which may
        have been lowered since the budget was held.

        An evaluation (`purpose` EVALUATE) counts as the round after the study's last one. Raises `BudgetRefusal` where
        the hold has no such attempt left or was released, or where the cap does not allow the attempt, and
        `PolicyRefusal` for a run without privacy that the site no longer allows: the site sits this round out.
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
        """Raise unless `cap` allows one more attempt of `hold`. What other runs hold and have not spent does not count:
        each of their attempts is checked in its turn.
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
        """Record that the attempt's reply is on disk. From now on it may be sent, any number of times.

        Raises `LedgerError` where it was settled already, or never made.
        """
        with self._file.transaction():
            self._read()
            known = self._book.attempts.get(attempt)
            if known is None or known.reply_sha256 is not None:
                raise LedgerError(f"{self._file.place}: attempt {attempt} is already settled, or was never recorded")
            self._file.append(self._head, {"kind": "settled", "id": attempt, "reply_sha256": reply_sha256})

    def release(self, study: str, run: str, who: str) -> Hold:
        """Give back what a hold has not used. Its attempts stay charged, and no other is ever made for this run.

        Settled replies may still be sent again. Returns the hold as it is now; asked again, nothing changes. Raises
        `LedgerError` where this run holds nothing.
        """
        with self._file.transaction():
            self._read()
            if self._book.hold_of(study, run).released_by is None:
                self._file.append(self._head, {"kind": "released", "study": study, "run": run, "who": who})
        self._read()
        return self._book.hold_of(study, run)

    def accept_loss(self, who: str, unknown: Mapping[tuple[str, str], PrivacyPlan]) -> LedgerHead:
        """Go on from this copy though later entries are gone for good; the new head.

        Guarantee: what the ledger says was spent is at least what was, where `unknown` has every run (study, run) that
        began after this copy. Each hold of this copy and of those runs is charged in full, whatever the cap, since the
        lost entries can have used no more; and no attempt is ever made for these runs again.
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
        """How many runs of a study ever held anything here, released and lost ones too."""
        self._read()
        return self._book.runs_of(study)

    def holds(self) -> list[Hold]:
        """All holds in their order, released ones too."""
        self._read()
        return list(self._book.holds.values())

    def attempts(self, study: str | None = None, run: str | None = None) -> list[Attempt]:
        """All attempts in their order, or those of one study and run."""
        self._read()
        if study is not None and run is not None:
            return self._book.attempts_of(study, run)
        return [a for a in self._book.attempts.values() if study in (None, a.study) and run in (None, a.run)]

    def events(self, run: str | None = None, purpose: str | None = None) -> list[Event]:
        """The privacy events of all attempts, one entry a hold and purpose; or those of one run, or of one purpose."""
        return [event for hold in self.holds() if run in (None, hold.run) for event in hold.spent(purpose)]

    def _committed(self) -> list[Event]:
        return [event for hold in self._book.holds.values() for event in hold.committed()]

    def spent(self, delta: float, run: str | None = None, purpose: str | None = None) -> Epsilon:
        """Epsilon of all attempts so far, settled or lost, at `delta`; of one run or one purpose where it is named."""
        return spent(self.events(run, purpose), delta)

    def committed(self, delta: float) -> Epsilon:
        """Epsilon of everything held, spent or not, at `delta`; studies without privacy make it inf."""
        self._read()
        return spent(self._committed(), delta)


def _no_privacy() -> PolicyRefusal:
    text = "the study asks for epsilon = inf; this site does not allow_no_privacy (site.toml)"
    return PolicyRefusal("no_privacy", text)
