"""Limits of how often something may happen: requests of an address, and failed sign-ins.

A sign-in is counted before its password is checked, so that many at once get no further than one after another. The
limits hold for logins that do not exist as well, and so do not show which ones do.
"""

from __future__ import annotations

import ipaddress
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable

MOST_KEYS = 10_000  # the longest unused key is forgotten first
QUARTER_S, HOUR_S = 15 * 60.0, 3600.0


def limited_address(address: str) -> str:
    """Return what an address counts as: an IPv6 address as its /64, which one household or hospital has as a whole."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv4Address):
        return str(found)
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(ipaddress.ip_network((found, 64), strict=False))


class Limit:
    """At most `most` events of a key within `within_s` seconds."""

    def __init__(self, most: int, within_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._within_s, self._clock = most, within_s, clock
        self._events: OrderedDict[str, deque[float]] = OrderedDict()
        self._lock = threading.Lock()

    def wait_s(self, key: str) -> float:
        """Count an event unless the limit is reached; return 0, or the seconds until the next one is possible."""
        now = self._clock()
        with self._lock:
            events = self._events.setdefault(key, deque())
            self._events.move_to_end(key)
            while events and now - events[0] >= self._within_s:
                events.popleft()
            if len(events) >= self._most:
                return self._within_s - (now - events[0])
            events.append(now)
            while len(self._events) > MOST_KEYS:
                self._events.popitem(last=False)
            return 0.0

    def undo(self, key: str) -> None:
        """Take back the last event of a key."""
        with self._lock:
            if events := self._events.get(key):
                events.pop()

    def forget(self, key: str) -> None:
        """Forget the events of a key."""
        with self._lock:
            self._events.pop(key, None)


class SignInLimits:
    """Failed sign-ins: 5 of a login from an address and 20 of an address in 15 minutes, 50 of a login in an hour."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._pair, self._address = Limit(5, QUARTER_S, clock), Limit(20, QUARTER_S, clock)
        self._login = Limit(50, HOUR_S, clock)

    def wait_s(self, login: str, address: str) -> float:
        """Count an attempt; return 0, or for how many seconds no further attempt is made."""
        counted = limited_address(address)
        return self._pair.wait_s(f"{login} {counted}") or self._address.wait_s(counted) or self._login.wait_s(login)

    def succeeded(self, login: str, address: str) -> None:
        """Forget the attempts for this login.

        Of those from the address only the last one is taken back: whoever has an account could otherwise guess other
        people's passwords without end, and sign in from time to time.
        """
        counted = limited_address(address)
        self._pair.forget(f"{login} {counted}")
        self._address.undo(counted)
        self._login.forget(login)
