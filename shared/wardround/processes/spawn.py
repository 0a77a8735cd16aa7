"""Worker processes that start fresh (spawn) and ignore SIGINT from startup.

A terminal sends SIGINT to every process of a command. A worker that is still importing would die of it with a
traceback, although the command alone decides how to stop. A worker is therefore started with SIGINT blocked, which it
inherits. A stop of the command is deferred until the worker has received everything that it needs to begin, because
otherwise the worker would die with a traceback from the incomplete start.

A Python process that is started with `-c`, as these workers are, looks for modules in the working folder first. A file
`types.py` among a user's files would be executed instead of the standard library's module.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.context import SpawnContext, SpawnProcess

# Python without the working folder and the user's variables on its module path, reading and printing UTF-8.
ISOLATED_PYTHON = (sys.executable, "-I", "-X", "utf8")


def import_nothing_from_working_folder() -> None:
    """Start all later Python processes without the working folder, or a script's folder, on their module path.

    `PYTHONSAFEPATH` also reaches processes that a library starts: multiprocessing's resource tracker, Ray's workers.
    """
    os.environ["PYTHONSAFEPATH"] = "1"


class _DeafProcess(SpawnProcess):
    def start(self) -> None:
        """Start with SIGINT blocked. A stop that arrives meanwhile is delivered to this process right afterwards."""
        with _stops_kept_back():
            before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            try:
                super().start()
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _stops_kept_back() -> Iterator[None]:
    """Defer SIGINT and SIGTERM until the end of the block.

    Python runs signal handlers in the main thread only, whichever thread received the signal, so there is nothing to
    defer in any other thread.
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
    """`multiprocessing`'s spawn context, with processes that ignore SIGINT and the modules of the working folder."""

    def __init__(self) -> None:
        super().__init__()
        import_nothing_from_working_folder()

    Process = _DeafProcess
