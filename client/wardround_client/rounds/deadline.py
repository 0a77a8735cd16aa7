"""What ends a round at its deadline: an exception that no handler of `Exception` catches."""

from __future__ import annotations

import contextlib
import faulthandler
import signal
import threading
from collections.abc import Iterator
from types import FrameType

HUNG_S = 30.0
LONGEST_S = 31 * 86_400.0  # a study's longest round takes a month; a timer takes no infinity


class OutOfTime(BaseException):
    """The round's deadline passed while the site trained. Not an `Exception`: no handler on the way may keep it."""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise `OutOfTime` inside the block after `seconds`: a hung round would wedge this site for every later one.

    A block that hangs outside Python cannot be raised in: its process ends half a minute later. Signals reach Python in
    the main thread only, which is where Flower and Ray run a task; elsewhere there is no limit.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(number: int, frame: FrameType | None) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, ring)
    try:
        if not seconds > 0:  # NaN is not
            raise OutOfTime
        seconds = min(seconds, LONGEST_S)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        faulthandler.dump_traceback_later(seconds + HUNG_S, exit=True)
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
