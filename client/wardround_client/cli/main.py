"""`wardround-site`: the command-line program of a hospital.

Each group of commands is in its own file and is added here.
Heavy modules (torch, Opacus, SQLite) are imported inside the commands, so that `--help` and usage errors respond
immediately.
"""

from __future__ import annotations

from typing import NoReturn

from wardround.cli.app import program, run_program
from wardround.cli.audit import audit_app
from wardround.cli.health import add_health
from wardround_client.cli import console, daemon, enhance, ledger, models, predict, setup, status, studies
from wardround_client.cli.data import forget, ingest, pull

app = program(
    "wardround-site",
    "One hospital of a federation: its rules, its data, its ledger. Research software, not a medical device.",
)
app.add_typer(setup.app)
app.command(
    epilog="Example: wardround-site pull archive --from 2024-01-01 --modality CT --into-folder ct --site north"
)(pull.pull)
app.command(epilog="Example: wardround-site ingest /data/ct --study studies/lidc.toml --site north")(ingest.ingest)
app.command(epilog="Example: wardround-site forget - --site north")(forget.forget)
app.add_typer(ledger.app, name="ledger")
app.add_typer(studies.app, name="studies")
app.add_typer(audit_app("wardround-site"), name="audit")
app.command(epilog="Example: wardround-site status --site hospital")(status.status)
app.command(epilog="Example: wardround-site start --site /srv/wardround")(daemon.start)
app.command(epilog="Example: wardround-site logs --follow --site hospital")(daemon.logs)
app.command(epilog="Example: wardround-site enhance scan.dcm --model model.safetensors")(enhance.enhance)
app.command(epilog="Example: wardround-site predict models/lidc scans --out predictions")(predict.predict)
app.command(epilog="Example: wardround-site explain models/lidc nodule.dcm --out explanation")(predict.explain)
app.command(epilog="Example: wardround-site personalise lung-model --site hospital")(models.personalise)
app.command(epilog="Example: wardround-site evaluate lung-model --site hospital")(models.evaluate)
app.add_typer(console.app, name="console")
add_health(app, "wardround-site", "--site", "hospital")


def main() -> NoReturn:
    """Run the program. Every deliberate error becomes one line on stderr and an exit code."""
    full_disk = "the disk is full; make room, then run the same command again"
    run_program(app, "wardround-site", full_disk=full_disk)


if __name__ == "__main__":
    main()
