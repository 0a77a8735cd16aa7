"""`wardround-site`: what a hospital runs. Each group of commands is a file of its own, added here.

Heavy imports (torch, Opacus, SQLite) happen inside the commands, so that `--help` and mistakes answer at once.
"""

from __future__ import annotations

from typing import NoReturn

from wardround.audit_commands import audit_app
from wardround.command_line import program, run_program
from wardround.health_commands import add_health
from wardround_client import (
    cli_daemon,
    cli_data,
    cli_enhance,
    cli_enrolment,
    cli_ledger,
    cli_logs,
    cli_status,
    cli_studies,
)

app = program(
    "wardround-site",
    "One hospital of a federation: its rules, its data, its ledger. Research software, no medical device.",
)
app.add_typer(cli_enrolment.app)
app.add_typer(cli_data.app)
app.add_typer(cli_ledger.app, name="ledger")
app.add_typer(cli_studies.app, name="studies")
app.add_typer(audit_app("wardround-site"), name="audit")
app.command(epilog="Example: wardround-site status --site hospital")(cli_status.status)
app.command(epilog="Example: wardround-site start --site /srv/wardround")(cli_daemon.start)
app.command(epilog="Example: wardround-site logs --follow --site hospital")(cli_logs.logs)
app.command(epilog="Example: wardround-site enhance scan.dcm --model model.safetensors")(cli_enhance.enhance)
add_health(app, "wardround-site", "--site", "hospital")


def main() -> NoReturn:
    """Entry point: every error on purpose becomes one line and its exit code."""
    full_disk = "the disk is full or read-only; make room, then run the same command again"
    run_program(app, "wardround-site", full_disk=full_disk)


if __name__ == "__main__":
    main()
