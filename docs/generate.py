"""Write docs/commands.md from the commands' own --help: `.venv/bin/python docs/generate.py`.

A test fails when the page is stale.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

PAGE = Path(__file__).with_name("commands.md")
WIDTH = 100
INTRODUCTION = """\
# Commands

Written by `python docs/generate.py` from the commands' own help; do not edit by hand.

`./run simulate ARGS` is `wardround-sim run ARGS`, `./run compare ARGS` is `wardround-sim compare ARGS`, and `./run
sim COMMAND ARGS` is any command below. Each sets up `.venv` first, once. `./run test` runs the tests (`--slow`: the
long ones too), `./run bench` the benchmarks.

Exit codes: 0 done · 1 failed · 2 a wrong option, file or field · 130 stopped with Ctrl-C. An error is one line: what is
wrong, where, what to do. `--json` prints the result for machines, and nothing else.
"""


def help_texts() -> Iterator[tuple[str, str]]:
    """(command, its --help) of the whole program and of every command, at a fixed width."""
    os.environ["COLUMNS"] = str(WIDTH)
    import typer.main
    from click.testing import CliRunner

    from wardround_simulation.cli import app

    program = typer.main.get_command(app)
    for words in ([], *([name] for name in program.commands)):  # type: ignore[attr-defined]
        done = CliRunner().invoke(program, [*words, "--help"], prog_name="wardround-sim", terminal_width=WIDTH)
        if done.exit_code != 0:
            raise SystemExit(f"wardround-sim {' '.join(words)} --help failed: {done.output}")
        yield " ".join(["wardround-sim", *words]), done.output.strip()


def page() -> str:
    """The whole page."""
    parts = [INTRODUCTION]
    parts += [f"## {command}\n\n```\n{text}\n```\n" for command, text in help_texts()]
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
