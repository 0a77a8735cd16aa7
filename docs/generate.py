"""Write docs/commands.md from the --help of the three programs: `.venv/bin/python docs/generate.py`.

A test fails when the page is stale.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import click

PAGE = Path(__file__).with_name("commands.md")
WIDTH = 100
INTRODUCTION = """\
# Commands

Written by `python docs/generate.py` from the commands' own help; do not edit by hand.

`./run simulate ARGS` is `wardround-sim run ARGS`, `./run compare ARGS` and `./run federation ARGS` are the commands of
`wardround-sim` with these names, `./run sim COMMAND ARGS` is any command of `wardround-sim`, `./run site COMMAND ARGS`
any of `wardround-site`, and `./run server COMMAND ARGS` any of `wardround-server`. Each sets up `.venv` first, once.
`./run check` checks format, lint, imports and types, `./run test` runs the tests (`--slow`: the long ones too), and
`./run bench` the benchmarks.

Exit codes: 0 done · 1 failed · 2 a wrong option, file or field · 3 refused by policy or budget · 130 stopped with
Ctrl-C. An error is one line: what is wrong, where, what to do. `--json` prints the result for machines, and nothing
else.
"""


def help_texts() -> Iterator[tuple[str, str]]:
    """(command, its --help) of the whole program and of every command, at a fixed width."""
    os.environ["COLUMNS"] = str(WIDTH)
    import typer.main
    from click.testing import CliRunner

    from wardround_client.cli import main
    from wardround_server.cli import main as server
    from wardround_simulation.cli import main as simulation

    programs = (("wardround-sim", simulation.app), ("wardround-site", main.app), ("wardround-server", server.app))
    for name, app in programs:
        program = typer.main.get_command(app)
        for words in every_command(program):
            done = CliRunner().invoke(program, [*words, "--help"], prog_name=name, terminal_width=WIDTH)
            if done.exit_code != 0:
                raise SystemExit(f"{name} {' '.join(words)} --help failed: {done.output}")
            yield " ".join([name, *words]), done.output.strip()


def every_command(command: click.Command) -> Iterator[list[str]]:
    """The words of a program, of each of its groups and of each of their commands: [], [group], [group, command]."""
    yield []
    for name, part in getattr(command, "commands", {}).items():
        yield from ([name, *words] for words in every_command(part))


def page() -> str:
    """The whole page."""
    parts = [INTRODUCTION]
    parts += [f"## {command}\n\n```\n{text}\n```\n" for command, text in help_texts()]
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
