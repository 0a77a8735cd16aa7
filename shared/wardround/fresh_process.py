"""Worker processes that start fresh (spawn) and are deaf to Ctrl-C from their first instruction on.

A terminal sends Ctrl-C to every process of a command. A worker that is still importing would die of it with a
traceback; what a stop means is for the command to say. So a worker is started with the signal blocked, which it
inherits.
"""

from __future__ import annotations

import signal
from multiprocessing.context import SpawnContext, SpawnProcess


class _DeafProcess(SpawnProcess):
    def start(self) -> None:
        """Start with SIGINT blocked; one that comes meanwhile reaches this process right after."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            super().start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


class FreshContext(SpawnContext):
    """`multiprocessing`'s spawn context, with such processes."""

    Process = _DeafProcess
