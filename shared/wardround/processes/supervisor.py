"""Supervises child processes: restarts them after a bounded pause, and ends them together without orphans.

Both daemons use it: the site's for its SuperNode, the server's for its SuperLink. Every child leads its own session, so
that everything it started ends with it, and the kernel ties it to this process (`tied`).
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import BinaryIO, cast

from wardround.errors import WardroundError
from wardround.operations.logs import SECRET, cut, relayed
from wardround.printable import escaped
from wardround.processes.parent_death import tied
from wardround.storage.locks import try_locked

SHORTEST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 15.0  # after a kill the server refuses the node for about a minute, so retries continue
STEADY_S = 60.0  # a child that ran this long restarts after the shortest pause
GRACE_S = 15.0
LOOK_S = 0.2
DAEMON_LOCK = ".daemon.lock"  # in the folder of a site or a server
LINE_BYTES = 2**20  # read per line of a child's output, which bounds memory use; our own log entries are shorter

COLOUR = re.compile(r"\x1b\[[0-9;]*m")
NOISE = ("[uvicorn.access]", "httpx: HTTP Request:")
LEVELS = {"DEBUG": logging.DEBUG, "WARNING": logging.WARNING, "ERROR": logging.ERROR, "CRITICAL": logging.ERROR}

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Child:
    """A program that should be kept running.

    `command` starts with a full path. The program's output goes to the log line by line. A line that starts with the
    secret of this start is logged as an entry of its own; any other line is logged as text of the program, because it
    may contain text from a peer. The child is up (`is_up`) from the line that contains `up_when` until it ends.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    folder: Path
    up_when: str = ""
    restarts: int = 0
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)
    _started: float = field(default=0.0, init=False)
    _pause_s: float = field(default=0.0, init=False)
    _up: int | None = field(default=None, init=False)  # the process that printed `up_when`
    _next_start: float = field(default=0.0, init=False)

    @property
    def pid(self) -> int | None:
        """The id of the running process, or None."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    @property
    def is_up(self) -> bool:
        """Whether the running process has reported that it is up."""
        return self.pid is not None and self._up == self.pid

    def look(self, now: float) -> None:
        """Start the program if it is not running and its pause is over. Call it from the main thread."""
        if self._process is not None and (code := self._process.poll()) is not None:
            _kill_group(self._process.pid, signal.SIGKILL)  # ends the processes that the child had started
            self._pause_s = 0.0 if now - self._started > STEADY_S else self._pause_s
            self._pause_s = min(max(2 * self._pause_s, SHORTEST_PAUSE_S), LONGEST_PAUSE_S)
            log.warning("%s exited with %s; it is restarted in %.0f s", self.name, code, self._pause_s)
            self._process, self._next_start, self.restarts = None, now + self._pause_s, self.restarts + 1
        if self._process is None and now >= self._next_start:
            self._start(now)

    def ask_to_end(self) -> None:
        """Send SIGTERM to this process alone; it ends the processes that it started itself."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()

    def kill(self) -> None:
        """Kill its whole session; the next `look` restarts it."""
        if self.pid is not None:
            _kill_group(self.pid, signal.SIGKILL)

    def end(self, deadline: float) -> None:
        """Wait until `deadline` (monotonic), then kill its whole session. Afterwards none of it is running."""
        if self._process is None:
            return
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(max(deadline - time.monotonic(), 0.0))
        _kill_group(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process = None

    def _start(self, now: float) -> None:
        secret = secrets.token_hex(16)
        self._process = subprocess.Popen(
            tied(self.command),
            env={**self.environment, SECRET: secret},
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._started = now
        log.info("%s started as process %s", self.name, self._process.pid)
        threading.Thread(target=self._pump, args=(self._process, secret), daemon=True).start()

    def _pump(self, process: subprocess.Popen[bytes], secret: str) -> None:
        """Copy the output to the log until it is closed, without colours and request lists."""
        lines = logging.getLogger(f"{__name__}.{self.name}")
        for line in lines_of(cast(BinaryIO, process.stdout)):
            text = COLOUR.sub("", line.decode("utf-8", "replace")).strip()
            if self.up_when and self.up_when in text:
                self._up = process.pid
            if text and not relayed(text, secret) and not any(noise in text for noise in NOISE):
                lines.log(_level_of(text), "%s", cut(escaped(cut(text.replace(secret, "")))))


def _level_of(text: str) -> int:
    """Return the level that Flower writes before its lines ("WARNING : ..."); INFO for any other line."""
    level = text.partition(":")[0].strip()
    return LEVELS.get(level, logging.INFO)


def lines_of(output: BinaryIO) -> Iterator[bytes]:
    """Yield the lines of a program's output; a longer line is cut to its first `LINE_BYTES`."""
    while line := output.readline(LINE_BYTES):
        more = line
        while len(more) == LINE_BYTES and not more.endswith(b"\n"):
            more = output.readline(LINE_BYTES)
        yield line


def supervise(children: Sequence[Child], stopped: threading.Event, each: Callable[[], None] = lambda: None) -> None:
    """Keep `children` running until `stopped` is set, then end them in reverse order.

    `each` is called after every check of the children and must return soon. No process of the children is running when
    this function returns or raises.
    """
    try:
        while not stopped.wait(LOOK_S):
            for child in children:
                child.look(time.monotonic())
            each()
    finally:
        for child in reversed(children):
            child.ask_to_end()
        deadline = time.monotonic() + GRACE_S
        for child in reversed(children):
            child.end(deadline)


@contextmanager
def sole(folder: Path, why: str = "a daemon is at work here already", patience_s: float = 0.0) -> Iterator[None]:
    """Ensure that this is the only daemon in a folder.

    Raises:
        WardroundError: Another daemon is running there for longer than `patience_s`. The message is `why`.
    """
    with try_locked(folder / DAEMON_LOCK, timeout_s=patience_s) as alone:
        if not alone:
            raise WardroundError(f"{folder}: {why}")
        yield


def stop_on_signals(stopped: threading.Event) -> None:
    """Set `stopped` on SIGTERM or SIGINT."""

    def stop(number: int, frame: FrameType | None) -> None:
        stopped.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)


def _kill_group(leader: int, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, number)
