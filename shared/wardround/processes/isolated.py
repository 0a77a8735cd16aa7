"""Run one of this project's modules in a process of its own, for example one with torch for a server without it."""

from __future__ import annotations

import os
import subprocess

from wardround.errors import WardroundError
from wardround.processes.spawn import ISOLATED_PYTHON


def run_isolated(module: str, arguments: list[str], fault: type[WardroundError], limit_s: float) -> str:
    """Run `python -I -m MODULE ARGUMENTS` and return what it printed.

    Args:
        module: A module of this project that ends with a one-line error, or prints its result.
        arguments: Its arguments.
        fault: The type of the error if the module fails.
        limit_s: The process is killed after this time.

    Raises:
        WardroundError: Of type `fault`, with the last line of the module's error output.
    """
    command = [*ISOLATED_PYTHON, "-m", module, *arguments]
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", errors="replace",
            timeout=limit_s, env=environment,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise fault(f"{module} took longer than {limit_s:.0f} s and was stopped") from None
    if done.returncode != 0:
        raise fault((done.stderr.strip().splitlines() or [f"{module} failed without giving a reason"])[-1])
    return done.stdout
