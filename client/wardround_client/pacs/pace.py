"""Politeness towards a PACS: the mean bandwidth, the hours, and the time limit of one call."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta

from wardround.errors import PolicyRefusal
from wardround_client.pacs.node import Node, Rows
from wardround_client.pacs.query import Finder

LONGEST_PAUSE_S = 4.0  # within a transfer: well below the time after which a PACS gives up a receiver that is slow
POLL_S = 30.0  # while waiting for the hours, so that a change of the clock counts


class Pace:
    """Delays a pull so that it keeps the bandwidth and the hours of `site.toml`.

    Args:
        node: The archive.
        limit_s: The most time that the call may take, in seconds.
        wait: Whether to wait for the permitted hours instead of stopping.
    """

    def __init__(
        self,
        node: Node,
        limit_s: float,
        *,
        wait: bool = False,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        self._node, self._wait = node, wait
        self._clock, self._sleep, self._now = clock, sleep, now
        self._ends = clock() + limit_s
        rate = node.config.bandwidth_mbit_s
        self._bytes_per_s = None if rate is None else rate * 1e6 / 8
        self._free_at = clock()  # when the bytes taken so far fit the bandwidth

    @property
    def ends(self) -> float:
        """When the call must have ended, on the monotonic clock."""
        return self._ends

    def took(self, count: int) -> None:
        """Wait after an object of `count` bytes, at most `LONGEST_PAUSE_S`; `begin` waits for the rest."""
        if self._bytes_per_s is None:
            return
        now = self._clock()
        self._free_at = max(self._free_at, now) + count / self._bytes_per_s
        self._sleep(min(self._free_at - now, LONGEST_PAUSE_S))

    def begin(self) -> None:
        """Wait until the next request may be sent.

        Raises:
            PolicyRefusal: It is outside the permitted hours, and the call does not wait.
            PacsError: The time limit of the call is reached.
        """
        self._in_time()
        rest = self._free_at - self._clock()
        if rest > 0:
            self._sleep(min(rest, max(0.0, self._ends - self._clock())))
        while (left_s := self.until_open_s()) > 0:
            if not self._wait:
                raise PolicyRefusal(
                    "pacs-hours",
                    f"{self._node.name}: site.toml allows pulls at {self._node.config.hours} only; run the same "
                    "command then, or add --wait",
                )
            self._in_time()
            self._sleep(min(left_s, POLL_S))
        self._in_time()

    def is_over(self) -> bool:
        """Return whether the time limit of the call is reached."""
        return self._clock() >= self._ends

    def until_open_s(self) -> float:
        """Return the seconds until the permitted hours begin; 0 within them."""
        hours = self._node.config.hours
        if hours is None:
            return 0.0
        now = self._now()
        begin, end = (
            now.replace(hour=int(part[:2]), minute=int(part[3:]), second=0, microsecond=0) for part in hours.split("-")
        )
        inside = begin <= now < end if begin < end else now >= begin or now < end
        if inside or begin == end:
            return 0.0
        return (begin - now if begin > now else begin + timedelta(days=1) - now).total_seconds()

    def _in_time(self) -> None:
        if self.is_over():
            raise self._node.out_of_time()


class PacedFinder:
    """Queries that each wait for the pace, so that a long search ends with the hours and the time limit too."""

    def __init__(self, finder: Finder, pace: Pace) -> None:
        self._finder, self._pace = finder, pace
        self.cuts_silently = finder.cuts_silently

    def find(self, level: str, match: Mapping[str, str], wanted: Iterable[str]) -> Rows:
        """Return the rows that match. Raises as `Pace.begin`, and as the finder itself."""
        self._pace.begin()
        return self._finder.find(level, match, wanted)
