"""The command `health`, the same in both programs: queries the health of the daemon of a folder."""

from __future__ import annotations

import json
import time
from pathlib import Path

import typer

from wardround.cli.options import JsonOption


def add_health(app: typer.Typer, program: str, option: str, what: str) -> None:
    """Add the command to `app`.

    `option` is the name of the folder's option, as in the program's other commands (`--site`).
    """

    chosen = typer.Option(Path("."), option, metavar="DIR", help="The daemon's folder.")

    @app.command(epilog=f"Example: {program} health {option} {what}")
    def health(folder: Path = chosen, as_json: JsonOption = False) -> None:
        """Ask the running daemon: what it found when it last looked. Exit 0: SERVING; 1: not, or nobody answers."""
        from wardround.cli.app import literal_console
        from wardround.operations.health import asked
        from wardround.operations.health_checks import table_of

        answer = asked(folder)
        if as_json:
            print(json.dumps(answer.to_json()))
        else:
            console = literal_console()
            console.print(table_of(answer.checks))
            ago = "" if answer.checked_at is None else f", looked {time.time() - answer.checked_at:.0f} s ago"
            console.print(f"{'SERVING' if answer.serving else 'NOT SERVING'}{ago}")
        if not answer.serving:
            raise typer.Exit(1)
