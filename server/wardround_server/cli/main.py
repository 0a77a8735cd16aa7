"""`wardround-server`: the command line for the operator of a federation. Each group of commands has its own module.

Heavy imports are made inside the commands, so that `--help` and usage errors appear at once.
"""

from __future__ import annotations

from typing import NoReturn

from wardround.cli.app import program, run_program
from wardround.cli.audit import audit_app
from wardround.cli.health import add_health
from wardround_server.cli import console, folder, logs, models, runs, sites

app = program(
    "wardround-server",
    "The server of a federation: its certificates, sites and runs. Research software, not a medical device.",
)
app.add_typer(folder.app)
app.add_typer(runs.app)
app.command(epilog="Example: wardround-server logs --site north --follow --server federation")(logs.logs)
app.add_typer(sites.app, name="sites")
app.add_typer(models.app, name="model")
app.add_typer(audit_app("wardround-server"), name="audit")
app.add_typer(console.app, name="console")
add_health(app, "wardround-server", "--server", "federation")


def main() -> NoReturn:
    """Run the program: every expected error becomes one line and an exit code."""
    full_disk = "the disk is full; free some space, then run the same command again"
    run_program(app, "wardround-server", full_disk=full_disk)


if __name__ == "__main__":
    main()
