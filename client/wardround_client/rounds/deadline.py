"""Time limit of a round, enforced by an exception that handlers of `Exception` do not catch."""

from __future__ import annotations

import contextlib
import faulthandler
import signal
import threading
from collections.abc import Iterator
from types import FrameType

HUNG_S = 30.0
LONGEST_S = 31 * 86_400.0  # a study's longest round takes a month; setitimer rejects infinity


class OutOfTime(BaseException):
    """The round's deadline passed while the site was training.

    It is not an `Exception`, so no `except Exception` in the call stack can swallow it.
    """


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise `OutOfTime` inside the block after `seconds`, so that a hung round cannot block this site's later rounds.

    A block that hangs outside Python cannot be interrupted by an exception; its process is ended half a minute later.
    Python handles signals in the main thread only, which is where Flower and Ray run a task; in any other thread there
    is no limit.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(number: int, frame: FrameType | None) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, ring)
    try:
        if not seconds > 0:  # also true for NaN
            raise OutOfTime
        seconds = min(seconds, LONGEST_S)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        faulthandler.dump_traceback_later(seconds + HUNG_S, exit=True)
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
