"""Programs as processes of their own: called to their end, or started and ended later. None outlives this process.

Each leads a session of its own, so that Ctrl-C reaches this process alone, which then ends them in order; and each is
tied to this process by the kernel, so that it ends even where this one is killed.
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
    """Run a program to its end and return what it printed.

    Raises `WardroundError`: `who`, and the line that the program ended with, or that it took longer than `limit_s`.
    """
    return call_all(program, {who: words}, limit_s=limit_s, codes=codes)[who]


def call_all(
    program: str, words: Mapping[str, tuple[object, ...]], *, limit_s: float, codes: tuple[int, ...] = (0,)
) -> dict[str, str]:
    """The same for several at once, by who they are. The first one that fails ends all."""
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
        raise WardroundError(f"{who}: `{what}` did not end within {limit_s:.0f} s") from None
    if process.returncode not in codes:
        lines = complaint.decode("utf-8", "replace").strip().splitlines()
        raise WardroundError(f"{who}: {lines[-1] if lines else f'`{what}` ended with {process.returncode}'}")
    return printed.decode("utf-8")


def asked(who: str, program: str, *words: object, limit_s: float) -> Any:
    """What a program says with --json. Raises as `call`."""
    return json.loads(call(who, program, *words, "--json", limit_s=limit_s))


@dataclass(frozen=True, kw_only=True)
class Daemon:
    """A program that goes on until it is ended. It prints to `printed`; what happens in it is in `log`."""

    name: str
    printed: Path
    log: Path
    process: subprocess.Popen[bytes]

    @property
    def started(self) -> bool:
        """Whether it printed the line that says so."""
        return self.printed.read_bytes().startswith(b"{")

    def check(self) -> None:
        """Raises `WardroundError` where it has ended: its name, its last line, and where its log is."""
        code = self.process.poll()
        if code is not None:
            lines = self.printed.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            said = lines[-1] if lines and not lines[-1].startswith("{") else "it said nothing"
            raise WardroundError(f"{self.name}: the daemon ended with {code}: {said}; its log: {self.log}")


def start(name: str, program: str, *words: object, printed: Path, log: Path) -> Daemon:
    """Start a program and return at once. Call it from the main thread (see `tied`)."""
    with open(printed, "wb", opener=owner_only) as output:
        process = _popen(program, words, stdout=output, stderr=subprocess.STDOUT)
    return Daemon(name=name, printed=printed, log=log, process=process)


def end(daemons: Iterable[Daemon]) -> None:
    """Ask all to end, wait, and kill what is left. Nothing of them runs afterwards."""
    _end([daemon.process for daemon in daemons])


def _popen(program: str, words: Iterable[object], **streams: Any) -> subprocess.Popen[bytes]:
    command = tied([str(PROGRAMS / program), *map(str, words)])
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, env=_environment(), start_new_session=True, **streams
    )  # fmt: skip


def _environment() -> Mapping[str, str]:
    """Ours, with the width of this terminal: theirs is a file or a pipe."""
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
    finally:  # also where a second Ctrl-C cuts the waiting short
        for process in processes:
            if process.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
