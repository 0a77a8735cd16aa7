"""The ledger: a site's record of the privacy spent on its patients, across all studies, in one SQLite file.

Three tables, none of which is ever updated: `holds` (a study's whole budget, taken at admission), `attempts` (one
privacy event each, durable before training starts) and `settlements` (the reply's hash, durable before the reply is
sent). So events = attempts; a crash between the two leaves an attempt that is charged and lost, and its retry draws
on the spare rounds. Epsilon is computed from the events when asked for; the ledger stores none.
"""

from __future__ import annotations

import math
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from wardround.accounting import Epsilon, GaussianEvent, spent
from wardround.errors import BudgetRefusal, LedgerError, PolicyRefusal
from wardround_client.privacy.plan import PrivacyPlan

SCHEMA_VERSION = 1
_BUSY_TIMEOUT_S = 30.0

_TABLES = (
    """
    CREATE TABLE holds (
        study TEXT NOT NULL, run TEXT NOT NULL, attempts INTEGER NOT NULL, noise_multiplier REAL NOT NULL,
        sampling_rate REAL NOT NULL, steps_per_attempt INTEGER NOT NULL, unit TEXT NOT NULL, at REAL NOT NULL,
        PRIMARY KEY (study, run)
    )
    """,
    """
    CREATE TABLE attempts (
        id INTEGER PRIMARY KEY AUTOINCREMENT, study TEXT NOT NULL, run TEXT NOT NULL, round INTEGER NOT NULL,
        weights TEXT NOT NULL, at REAL NOT NULL, FOREIGN KEY (study, run) REFERENCES holds (study, run)
    )
    """,
    """
    CREATE TABLE settlements (
        attempt INTEGER PRIMARY KEY REFERENCES attempts (id), reply_sha256 TEXT NOT NULL, at REAL NOT NULL
    )
    """,
)
_APPEND_ONLY = """
    CREATE TRIGGER {table}_{change} BEFORE {change} ON {table} BEGIN
        SELECT RAISE(ABORT, 'the ledger is append-only');
    END
"""


@dataclass(frozen=True, kw_only=True)
class Cap:
    """The most that a site spends on its patients, over all studies. `allow_no_privacy` admits studies of epsilon =
    inf.
    """

    epsilon: float
    delta: float
    allow_no_privacy: bool = False


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One attempted round: what was received, and the hash of the reply once it was settled."""

    id: int
    study: str
    run: str
    round: int
    weights: str
    reply_sha256: str | None


class Ledger:
    """One site's ledger. Every call is one durable transaction; several processes may hold the same file."""

    def __init__(self, path: Path | None) -> None:
        """Open or create the ledger. `None` keeps it in memory, for simulations that compare recipes."""
        self._place = ":memory:" if path is None else str(path)
        try:
            self._connection = sqlite3.connect(self._place, timeout=_BUSY_TIMEOUT_S, isolation_level=None)
            self._connection.execute("PRAGMA foreign_keys = ON")
            self._connection.execute(
                "PRAGMA synchronous = EXTRA"
            )  # also syncs the folder after the journal is unlinked
            with self._transaction():
                found = self._connection.execute("PRAGMA user_version").fetchone()[0]
                if found == 0:
                    self._create()
                    self._connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        except sqlite3.DatabaseError as error:
            raise LedgerError(
                f"{self._place}: not a readable ledger ({error}); restore it from the last backup"
            ) from None
        if found not in (0, SCHEMA_VERSION):
            raise LedgerError(
                f"{self._place}: ledger schema {found}, this version knows {SCHEMA_VERSION}; upgrade wardround"
            )

    def _create(self) -> None:
        for statement in _TABLES:
            self._connection.execute(statement)
        for table in ("holds", "attempts", "settlements"):
            for change in ("UPDATE", "DELETE"):
                self._connection.execute(_APPEND_ONLY.format(table=table, change=change))

    def close(self) -> None:
        self._connection.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    def hold(self, study: str, run: str, plan: PrivacyPlan, cap: Cap) -> None:
        """Hold the whole study's budget, spare rounds included, before any image is read. Asked again: nothing changes.

        Raises `PolicyRefusal` where the study's delta or its lack of privacy is against the cap, and
        `BudgetRefusal` where all events of the ledger, all other holds and this study together would exceed it.
        """
        if not plan.private and not cap.allow_no_privacy:
            raise PolicyRefusal(
                "no_privacy", "the study asks for epsilon = inf; this site does not allow_no_privacy (site.toml)"
            )
        if plan.delta > cap.delta:
            raise PolicyRefusal(
                "delta", f"the study's delta {plan.delta:g} is above this site's {cap.delta:g} (site.toml)"
            )
        with self._transaction():
            held = self._connection.execute(
                "SELECT attempts, noise_multiplier, sampling_rate, steps_per_attempt FROM holds "
                "WHERE study = ? AND run = ?",
                (study, run),
            ).fetchone()
            event = plan.event(1)
            asked = (plan.attempts, event.noise_multiplier, event.sampling_rate, event.steps)
            if held is not None:
                if tuple(held) != asked:
                    raise LedgerError(
                        f"{self._place}: this run holds another plan; the study or the accountant changed under it"
                    )
                return
            whole = [*self._committed(), plan.event(plan.attempts)]
            total = spent([e for e in whole if e.noise_multiplier > 0], cap.delta)
            if total.value > cap.epsilon:
                before = spent([e for e in whole[:-1] if e.noise_multiplier > 0], cap.delta)
                raise BudgetRefusal(
                    "budget",
                    f"the study would bring this site to {total.value:.3g} of its cap of epsilon {cap.epsilon:g} "
                    f"(spent or held: {before.value:.3g}); ask for a smaller epsilon, or raise the cap in site.toml",
                )
            self._connection.execute(
                "INSERT INTO holds VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (study, run, *asked, event.unit, time.time())
            )

    def settled(self, study: str, run: str, round_: int, weights: str) -> Attempt | None:
        """The settled attempt of this round with these weights, whose reply may be sent again without a charge.

        Raises `PolicyRefusal` where the same round was attempted with other weights: two answers would be two releases
        for the price of one, and tell the server how the patients move them.
        """
        found = [attempt for attempt in self.attempts(study, run) if attempt.round == round_]
        if any(attempt.weights != weights for attempt in found):
            raise PolicyRefusal("other_weights", f"round {round_} was already attempted with other weights")
        return next((attempt for attempt in found if attempt.reply_sha256 is not None), None)

    def reserve(self, study: str, run: str, round_: int, weights: str) -> int:
        """Charge one attempt to the hold, durably, before training starts. Returns its id.

        Raises `BudgetRefusal` where the hold has no attempt left: the site sits this round out.
        """
        with self._transaction():
            held = self._connection.execute(
                "SELECT attempts FROM holds WHERE study = ? AND run = ?", (study, run)
            ).fetchone()
            if held is None:
                raise LedgerError(f"{self._place}: no budget is held for this run")
            used = self._connection.execute(
                "SELECT COUNT(*) FROM attempts WHERE study = ? AND run = ?", (study, run)
            ).fetchone()[0]
            if used >= held[0]:
                raise BudgetRefusal(
                    "no_spare_rounds", f"all {held[0]} attempts of this run are used; the site sits round {round_} out"
                )
            cursor = self._connection.execute(
                "INSERT INTO attempts (study, run, round, weights, at) VALUES (?, ?, ?, ?, ?)",
                (study, run, round_, weights, time.time()),
            )
            return int(cursor.lastrowid or 0)

    def settle(self, attempt: int, reply_sha256: str) -> None:
        """Record that the attempt's reply is on disk. From now on it may be sent, any number of times."""
        with self._transaction():
            self._connection.execute("INSERT INTO settlements VALUES (?, ?, ?)", (attempt, reply_sha256, time.time()))

    def attempts(self, study: str | None = None, run: str | None = None) -> list[Attempt]:
        """All attempts in their order, or those of one study and run."""
        rows = self._connection.execute(
            "SELECT id, study, run, round, weights, reply_sha256 FROM attempts LEFT JOIN settlements ON attempt = id "
            "WHERE (?1 IS NULL OR study = ?1) AND (?2 IS NULL OR run = ?2) ORDER BY id",
            (study, run),
        )
        return [Attempt(id=i, study=s, run=u, round=r, weights=w, reply_sha256=h) for i, s, u, r, w, h in rows]

    def events(self, run: str | None = None) -> list[GaussianEvent]:
        """The privacy events of all attempts, one entry a hold, or those of one run."""
        rows = self._connection.execute(
            "SELECT noise_multiplier, sampling_rate, steps_per_attempt, COUNT(*), unit FROM attempts "
            "JOIN holds USING (study, run) WHERE (?1 IS NULL OR run = ?1) GROUP BY study, run ORDER BY MIN(id)",
            (run,),
        )
        return [_event(noise, rate, steps * count, unit) for noise, rate, steps, count, unit in rows]

    def _committed(self) -> list[GaussianEvent]:
        rows = self._connection.execute(
            "SELECT noise_multiplier, sampling_rate, steps_per_attempt * attempts, unit FROM holds"
        )
        return [_event(noise, rate, steps, unit) for noise, rate, steps, unit in rows]

    def spent(self, delta: float, run: str | None = None) -> Epsilon:
        """Epsilon of all attempts so far, settled or lost, at `delta`; of one run where it is named."""
        return spent(self.events(run), delta)

    def committed(self, delta: float) -> Epsilon:
        """Epsilon of everything held, spent or not, at `delta`; studies without privacy make it inf."""
        return spent(self._committed(), delta)


def _event(noise_multiplier: float, sampling_rate: float, steps: int, unit: str) -> GaussianEvent:
    if not math.isfinite(noise_multiplier):
        raise LedgerError("the ledger holds an event without a finite noise multiplier")
    return GaussianEvent(noise_multiplier=noise_multiplier, sampling_rate=sampling_rate, steps=int(steps), unit=unit)
