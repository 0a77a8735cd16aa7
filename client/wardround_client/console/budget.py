"""The privacy budget of a site as its pages show it: what is spent, reserved, promised and left, and by which study."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path

from wardround.accounting import Epsilon, Event, spent
from wardround_client.ledger.book import Hold
from wardround_client.ledger.ledger import Cap
from wardround_client.site.budget import cap_of_site, opened_ledger
from wardround_client.studies.approvals import known_studies, promised

LEAST_DECIMALS, MOST_DECIMALS = 2, 6  # of the parts of the budget


@dataclass(frozen=True, kw_only=True)
class Parts:
    """A cap in four parts, rounded so that they add up to it: used parts never too small, what is left never too much.

    Epsilons of several events do not add up by themselves. Each part is therefore what the sum grows by: `spent` by all
    attempts so far, `reserved` by what running studies may still use, and `promised` by the runs that were approved and
    have not begun. If together they are above the cap, `left` is 0 and `above` says by how much.
    """

    spent: float
    reserved: float
    promised: float
    left: float
    above: float
    cap: float
    decimals: int


@dataclass(frozen=True, kw_only=True)
class Spending:
    """One study's part of the budget, as if it were alone; `parts` is None for a study without privacy."""

    sha256: str
    name: str
    runs: int
    parts: Parts | None


@dataclass(frozen=True, kw_only=True)
class Reserved:
    """A run that still holds a part of the budget; `freed` is what its release would give back, rounded down."""

    study: str
    name: str
    run: str
    used: int
    held: int
    freed: float


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The ledger against the cap. All values are per patient at the cap's delta.

    `spent` and `held` (spent or held) count everything; `parts` and `left` leave out studies without privacy, as the
    cap does. `left` is what remains once the approved studies have used what they were promised.
    """

    cap: Cap
    spent: Epsilon
    held: Epsilon
    left: Epsilon
    parts: Parts
    entries: int
    studies: tuple[Spending, ...]
    reserved: tuple[Reserved, ...]

    @property
    def finite(self) -> bool:
        """Whether every study has privacy; one without has no finite epsilon."""
        return self.held.value != float("inf")


def names_of(folder: Path) -> dict[str, str]:
    """Return the names of the studies known here, by hash."""
    return {one.sha256: one.study.study.name for one in known_studies(folder) if one.study is not None}


def budget_of(folder: Path) -> Budget:
    """Read the ledger and the cap. Raises `WardroundError` if one of them cannot be read."""
    ledger, cap = opened_ledger(folder), cap_of_site(folder)
    try:
        holds, names, promises = ledger.holds(), names_of(folder), promised(folder, ledger)
        parts = _parts_of(holds, [event for events in promises.values() for event in events], cap)
        by_study = {sha256: [hold for hold in holds if hold.study == sha256] for sha256 in _hashes_in(holds, promises)}
        spent_now = ledger.spent(cap.delta)
        return Budget(
            cap=cap,
            spent=spent_now,
            held=ledger.committed(cap.delta),
            left=replace(spent_now, value=parts.left),
            parts=parts,
            entries=ledger.head().entries,
            studies=tuple(
                _spending(sha256, names.get(sha256, ""), own, promises.get(sha256, []), cap)
                for sha256, own in by_study.items()
            ),
            reserved=tuple(
                _reserved(hold, holds, names, parts, cap) for hold in holds if any(hold.attempts_left.values())
            ),
        )
    finally:
        ledger.close()


def _hashes_in(holds: Sequence[Hold], promises: Mapping[str, object]) -> list[str]:
    """Return the hashes of the studies that hold a part of the budget, then of those that were promised one."""
    return list(dict.fromkeys([*(hold.study for hold in holds), *promises]))


def _spending(sha256: str, name: str, holds: Sequence[Hold], promises: Sequence[Event], cap: Cap) -> Spending:
    private = all(event.private for event in [*promises, *(event for hold in holds for event in hold.committed())])
    parts = _parts_of(holds, promises, cap) if private else None
    return Spending(sha256=sha256, name=name, runs=len(holds), parts=parts)


def _reserved(hold: Hold, holds: Sequence[Hold], names: Mapping[str, str], parts: Parts, cap: Cap) -> Reserved:
    released = replace(hold, released_by="nobody")
    others = [event for one in holds for event in (released if one is hold else one).committed() if event.private]
    before, after = parts.spent + parts.reserved, _rounded_up(spent(others, cap.delta).value, parts.decimals)
    return Reserved(
        study=hold.study,
        name=names.get(hold.study, ""),
        run=hold.run,
        used=sum(hold.used.values()),
        held=sum(share.attempts for share in hold.shares.values()),
        freed=max(0.0, before - after / 10**parts.decimals),
    )


def _parts_of(holds: Sequence[Hold], promises: Sequence[Event], cap: Cap) -> Parts:
    """Return how the cap is divided, each sum rounded up; only events with privacy count against it."""
    bounded = math.isfinite(cap.epsilon)
    decimals = max(LEAST_DECIMALS, min(MOST_DECIMALS, _decimals_of(cap.epsilon))) if bounded else LEAST_DECIMALS
    units = 10**decimals
    spent_events = [event for hold in holds for event in hold.spent() if event.private]
    held_events = [event for hold in holds for event in hold.committed() if event.private]
    all_events = [*held_events, *(event for event in promises if event.private)]
    sums = (spent(events, cap.delta).value for events in (spent_events, held_events, all_events))
    spent_units, held_units, all_units = (_rounded_up(value, decimals) for value in sums)
    cap_units = math.floor(cap.epsilon * units + 1e-6) if bounded else math.inf
    return Parts(
        spent=spent_units / units,
        reserved=(held_units - spent_units) / units,
        promised=(all_units - held_units) / units,
        left=max(0.0, (cap_units - all_units) / units),
        above=max(0.0, (all_units - cap_units) / units),
        cap=cap_units / units,
        decimals=decimals,
    )


def _rounded_up(epsilon: float, decimals: int) -> int:
    """Return an epsilon in units of its last decimal, rounded up, because it is an upper bound."""
    return math.ceil(epsilon * 10**decimals - 1e-6)


def _decimals_of(number: float) -> int:
    """Return how many decimals a number has as it is written, so that a cap is shown with all of its own."""
    return -int(Decimal(repr(number)).normalize().as_tuple().exponent)
