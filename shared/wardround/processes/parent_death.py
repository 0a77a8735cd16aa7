"""Runs a program that ends when the process that started it ends, for whatever reason, so that no orphan is left.

    python -I -m wardround.processes.parent_death PARENT_PID SIGNAL PROGRAM ARGUMENT...

The kernel sends SIGNAL at the parent's death (prctl PR_SET_PDEATHSIG, which survives exec). Linux only.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

from wardround.processes.spawn import ISOLATED_PYTHON

PR_SET_PDEATHSIG, PR_SET_NAME = 1, 15


def tied(command: Sequence[str], signal_number: int = signal.SIGTERM) -> list[str]:
    """Return the command line that runs `command` tied to the calling process.

    Start it from the main thread, because the kernel watches the thread that forked.
    """
    return [
        *ISOLATED_PYTHON,
        "-m",
        "wardround.processes.parent_death",
        str(os.getpid()),
        str(int(signal_number)),
        *command,
    ]


def end_with_parent(signal_number: int, name: str) -> None:
    """Tie this process to its parent from within, and set its name in the kernel's list to `name` (15 bytes)."""
    parent, libc = os.getppid(), ctypes.CDLL(None, use_errno=True)
    _ask_for_signal(libc, signal_number)
    libc.prctl(PR_SET_NAME, name.encode("ascii"), 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(1)


def main(arguments: Sequence[str]) -> None:
    """Tie this process to its parent and replace it by the program."""
    parent, signal_number, program, *rest = arguments
    _ask_for_signal(ctypes.CDLL(None, use_errno=True), int(signal_number))
    if os.getppid() != int(parent):  # the parent died before the prctl call
        sys.exit(1)
    os.execv(program, [program, *rest])


def _ask_for_signal(libc: ctypes.CDLL, signal_number: int) -> None:
    if libc.prctl(PR_SET_PDEATHSIG, int(signal_number), 0, 0, 0) != 0:
        sys.exit(f"the process cannot be tied to its parent: {os.strerror(ctypes.get_errno())}")


if __name__ == "__main__":
    main(sys.argv[1:])
