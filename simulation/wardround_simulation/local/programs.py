"""Run programs as child processes, either to completion or as daemons. None of them outlives this process.

Each child leads its own session, so that Ctrl-C reaches only this process, which then ends the children in order. Each
child also has a parent-death signal, so that it ends even if this process is killed.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wardround.errors import WardroundError
from wardround.processes.parent_death import tied
from wardround.storage.atomic import owner_only

PROGRAMS = Path(sys.executable).parent
GRACE_S = 30.0  # a daemon gives its own processes 15 s


def call(who: str, program: str, *words: object, limit_s: float, codes: tuple[int, ...] = (0,)) -> str:
    """Run a program to completion and return its standard output.

    Raises:
        WardroundError: If the exit code is not in `codes`, or the program takes longer than `limit_s`. The message
            names `who` and gives the last line that the program printed to standard error, or the limit.
    """
    return call_all(program, {who: words}, limit_s=limit_s, codes=codes)[who]


def call_all(
    program: str, words: Mapping[str, tuple[object, ...]], *, limit_s: float, codes: tuple[int, ...] = (0,)
) -> dict[str, str]:
    """Run a program several times concurrently, and return the outputs by name. The first failure ends all.

    Args:
        words: Name -> the arguments of that call.

    Raises:
        WardroundError: As `call` does.
    """
    ends = time.monotonic() + limit_s
    running: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for who, own in words.items():
            running[who] = _popen(program, own, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        return {who: _printed(who, f"{program} {words[who][0]}", running[who], ends, limit_s, codes) for who in words}
    finally:
        _end(list(running.values()))


def _printed(
    who: str, what: str, process: subprocess.Popen[bytes], ends: float, limit_s: float, codes: tuple[int, ...]
) -> str:
    try:
        printed, complaint = process.communicate(timeout=max(ends - time.monotonic(), 0.0))
    except subprocess.TimeoutExpired:
        raise WardroundError(f"{who}: `{what}` did not finish within {limit_s:.0f} s") from None
    if process.returncode not in codes:
        lines = complaint.decode("utf-8", "replace").strip().splitlines()
        raise WardroundError(f"{who}: {lines[-1] if lines else f'`{what}` exited with code {process.returncode}'}")
    return printed.decode("utf-8")


def asked(who: str, program: str, *words: object, limit_s: float) -> Any:
    """Return a program's parsed output with --json. Raises as `call` does."""
    return json.loads(call(who, program, *words, "--json", limit_s=limit_s))


@dataclass(frozen=True, kw_only=True)
class Daemon:
    """A program that runs until it is ended. `printed` receives its output; `log` is its log."""

    name: str
    printed: Path
    log: Path
    process: subprocess.Popen[bytes]

    @property
    def started(self) -> bool:
        """Whether the daemon has printed its JSON line, which it does when it has started."""
        return self.printed.read_bytes().startswith(b"{")

    def check(self) -> None:
        """Raise `WardroundError` if the daemon has ended, with its name, its last line and the path of its log."""
        code = self.process.poll()
        if code is not None:
            lines = self.printed.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            output = lines[-1] if lines and not lines[-1].startswith("{") else "no output"
            raise WardroundError(f"{self.name}: the daemon exited with code {code}: {output}; its log: {self.log}")


def start(name: str, program: str, *words: object, printed: Path, log: Path) -> Daemon:
    """Start a program and return immediately. Must be called from the main thread (see `tied`)."""
    with open(printed, "wb", opener=owner_only) as output:
        process = _popen(program, words, stdout=output, stderr=subprocess.STDOUT)
    return Daemon(name=name, printed=printed, log=log, process=process)


def end(daemons: Iterable[Daemon]) -> None:
    """Terminate all daemons, wait up to `GRACE_S`, and kill those that still run. None runs afterwards."""
    _end([daemon.process for daemon in daemons])


def _popen(program: str, words: Iterable[object], **streams: Any) -> subprocess.Popen[bytes]:
    command = tied([str(PROGRAMS / program), *map(str, words)])
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, env=_environment(), start_new_session=True, **streams
    )  # fmt: skip


def _environment() -> Mapping[str, str]:
    """Return this process's environment with this terminal's width, as a child writes to a file or a pipe."""
    return {**os.environ, "COLUMNS": str(shutil.get_terminal_size((100, 24)).columns)}


def _end(processes: list[subprocess.Popen[bytes]]) -> None:
    deadline = time.monotonic() + GRACE_S
    try:
        for process in processes:
            if process.poll() is None:
                process.terminate()
        for process in processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(deadline - time.monotonic(), 0.0))
    finally:  # runs also if a second Ctrl-C interrupts the wait
        for process in processes:
            if process.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
