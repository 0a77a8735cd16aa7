"""Sessions of signed-in users, in memory: they end with the program, when unused, after some hours, and on sign-out.

A session's token is 256 random bits, made at the sign-in; a token that this program did not make is never adopted. Only
the hash of a token is kept. Each session has its own token against forged forms (CSRF). Before the sign-in there is no
session: the sign-in form is protected by a random cookie and its keyed hash in the form.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from wardround.web.accounts.users import User

MOST_OF_A_USER = 8  # the oldest session ends when a user signs in once more


@dataclass(kw_only=True)
class Session:
    """One signed-in browser. Times are in seconds of the monotonic clock, `began_at` in seconds since 1970.

    `address` is the browser's, as the console or its proxy sees it.
    """

    login: str
    fingerprint: str
    began: float
    used: float
    address: str = ""
    began_at: float = field(default_factory=time.time)
    csrf: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)


class Sessions:
    """All sessions of a program."""

    def __init__(self, idle_s: float, longest_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._idle_s, self._longest_s, self._clock = idle_s, longest_s, clock
        self._known: dict[str, Session] = {}
        self._lock, self._key = threading.Lock(), secrets.token_bytes(32)

    def begin(self, user: User, address: str = "") -> tuple[str, Session]:
        """Begin a session of a browser at `address`, and return its token and the session."""
        token, now = secrets.token_urlsafe(32), self._clock()
        session = Session(login=user.login, fingerprint=user.fingerprint(), began=now, used=now, address=address)
        with self._lock:
            self._known = {key: one for key, one in self._known.items() if not self._over(one, now)}
            own = [key for key, one in self._known.items() if one.login == user.login]
            for key in own[: max(0, len(own) + 1 - MOST_OF_A_USER)]:
                del self._known[key]
            self._known[_digest(token)] = session
        return token, session

    def find(self, token: str | None, *, touch: bool) -> Session | None:
        """Return the session of a token, or None if there is none or it is over.

        `touch` counts as use of the session. A page that updates itself does not touch it, so that it does not keep the
        session of an absent person.
        """
        if not token:
            return None
        now = self._clock()
        with self._lock:
            session = self._known.get(_digest(token))
            if session is None or self._over(session, now):
                self._known.pop(_digest(token), None)
                return None
            if touch:
                session.used = now
            return session

    def of(self, login: str) -> list[Session]:
        """Return the sessions of a user that are not over, the oldest first."""
        now = self._clock()
        with self._lock:
            return [one for one in self._known.values() if one.login == login and not self._over(one, now)]

    def end_others(self, session: Session) -> int:
        """End all sessions of a session's user but this one, and return how many there were."""
        with self._lock:
            others = [key for key, one in self._known.items() if one.login == session.login and one is not session]
            for key in others:
                del self._known[key]
            return len(others)

    def end(self, token: str | None) -> None:
        """End a session, if there is one."""
        with self._lock:
            self._known.pop(_digest(token or ""), None)

    def form_token(self, visit: str) -> str:
        """Return the token of the sign-in form for the random cookie `visit`."""
        return hmac.new(self._key, visit.encode(), hashlib.sha256).hexdigest()

    def _over(self, session: Session, now: float) -> bool:
        return now - session.used > self._idle_s or now - session.began > self._longest_s


def same(one: str, other: str) -> bool:
    """Compare two secrets in a time that does not depend on where they differ."""
    return hmac.compare_digest(one.encode(), other.encode())


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
