"""Stops a simulation at Ctrl-C or SIGTERM, at a moment at which no library is being loaded or started.

An exception that a signal handler raises appears wherever the main thread is. In an import, or while Ray or Flower
start, it is printed as a traceback, taken for a defect of Ray, or aborts the process. A signal that arrives at such a
moment is therefore recorded, and takes effect at the next safe one: a call of `check`, or the wait for the workers.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from wardround.errors import WardroundError

STOPPING = (signal.SIGINT, signal.SIGTERM)


class Interrupted(WardroundError):
    """The run was stopped by Ctrl-C or SIGTERM. Nothing is lost, and the same command continues it."""

    exit_code = 130

    def __init__(self) -> None:
        super().__init__("stopped; the same command continues with the unfinished round")


class Stop:
    """The request to stop of one run. `ended` is set when all waits of the run's other threads should end."""

    def __init__(self) -> None:
        self.ended = threading.Event()
        self._number = 0  # of the signal that arrived
        self._waits = False

    @property
    def requested(self) -> bool:
        """Whether a signal has arrived."""
        return self._number != 0

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """Handle SIGINT and SIGTERM in the block, if it runs in the main thread; a second signal changes nothing.

        A signal that this process was started to ignore stays ignored, as in the background of a shell.

        Raises:
            Interrupted: At the end of the block, if a signal arrived in it and nothing else was raised.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        handled = [number for number in STOPPING if signal.getsignal(number) is not signal.SIG_IGN]
        before = {number: signal.signal(number, self._request) for number in handled}
        try:
            yield
            self.check()
        except KeyboardInterrupt:
            raise Interrupted from None
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def check(self) -> None:
        """Raise `Interrupted` if a signal arrived. For moments at which nothing is being started."""
        if self.requested:
            raise Interrupted

    def main_thread_waits(self) -> None:
        """Let a signal end the main thread's wait for the workers, also one that arrived earlier.

        Called by another thread once the main thread has started everything that it starts.
        """
        self._waits = True
        if self.requested:
            signal.pthread_kill(threading.main_thread().ident or 0, self._number)

    def main_thread_is_back(self) -> None:
        """Record signals again instead of raising, because the engine is being shut down."""
        self._waits = False

    def _request(self, number: int, frame: FrameType | None) -> None:
        self._number = self._number or number
        self.ended.set()
        if self._waits:
            self._waits = False
            raise KeyboardInterrupt
