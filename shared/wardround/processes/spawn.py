"""Worker processes that start fresh (spawn) and are deaf to Ctrl-C from their first instruction on.

A terminal sends Ctrl-C to every process of a command. A worker that is still importing would die of it with a
traceback; what a stop means is for the command to say. So a worker is started with the signal blocked, which it
inherits. And a stop of the command waits until the worker has been told all that it needs to begin, for otherwise it
dies of that with a traceback.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.context import SpawnContext, SpawnProcess


class _DeafProcess(SpawnProcess):
    def start(self) -> None:
        """Start with SIGINT blocked; a stop that comes meanwhile reaches this process right after."""
        with _stops_kept_back():
            before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            try:
                super().start()
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _stops_kept_back() -> Iterator[None]:
    """SIGINT and SIGTERM are handled at the end of the block. Python runs handlers in the main thread only, whichever
    thread the signal reached; in another thread there is nothing to keep back.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = {
        number: signal.signal(number, lambda number, frame: came.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for first in came[:1]:
        signal.raise_signal(first)


class FreshContext(SpawnContext):
    """`multiprocessing`'s spawn context, with such processes."""

    Process = _DeafProcess
