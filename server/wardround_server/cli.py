"""`wardround-server`: what the operator of a federation runs. Each group of commands is a file of its own, added here.

Heavy imports happen inside the commands, so that `--help` and mistakes answer at once.
"""

from __future__ import annotations

from typing import NoReturn

from wardround.audit_commands import audit_app
from wardround.command_line import program, run_program

app = program(
    "wardround-server",
    "The server of a federation: its certificates, its sites, its runs. Research software, no medical device.",
)
app.add_typer(audit_app("wardround-server"), name="audit")


@app.callback()
def wardround_server() -> None:
    """Commands come in groups; this keeps the group's name even where there is one only."""


def main() -> NoReturn:
    """Entry point: every error on purpose becomes one line and its exit code."""
    full_disk = "the disk is full or read-only; make room, then run the same command again"
    run_program(app, "wardround-server", full_disk=full_disk)


if __name__ == "__main__":
    main()
