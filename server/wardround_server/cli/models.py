"""`wardround-server model`: list, show, export and verify the released models of all runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from wardround.cli.handover import (
    AttackOption,
    ForceOption,
    LicenseOption,
    PackageArgument,
    TargetArgument,
    print_exported,
    print_findings,
)
from wardround.cli.options import ByForAuditOption, JsonOption, ServerOption

app = typer.Typer(
    help="The released models: list, show, export and verify them.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="The run's id, as `model list` shows it.")]


@app.command("list", epilog="Example: wardround-server model list --server federation")
def list_(server: ServerOption = Path("."), as_json: JsonOption = False) -> None:
    """List the released models: version, privacy, start, stage, file hash. Exit code 1: a model is damaged.

    The stage is released, exported, or exported unsafe (with --force-unsafe). The start is the public weights, or the
    run whose model the study started from.
    """
    from wardround.cli.app import print_table
    from wardround.printable import escaped
    from wardround.text import epsilon_text
    from wardround_server.operations.config import load_server_config
    from wardround_server.runs.handover import models

    load_server_config(server)
    found, damaged = models(server)
    if as_json:
        print(json.dumps([*found, *damaged]))
    else:
        columns = ("run", "version", "network", "privacy", "start", "stage", "sha256")
        rows: list[tuple[str, ...]] = [
            (one["run"], f"{one['study']} v{one['version']}", one["architecture"],
             f"ε {epsilon_text(one['epsilon'])}, δ {one['delta']:g}", one["start"], one["stage"],
             f"{one['sha256'][:16]}…")
            for one in found
        ]  # fmt: skip
        print_table(columns, rows or [("none", *[""] * 6)])
        for one in damaged:
            print(escaped(f"{one['run']}: {one['fault']}"))
    if damaged:
        raise typer.Exit(1)


@app.command(epilog="Example: wardround-server model show lidc-20261124-220105-e0b46f --server federation")
def show(run: RunArgument, server: ServerOption = Path("."), as_json: JsonOption = False) -> None:
    """Show a released model: study, data, privacy, sites, missing replies, figures. The model file is checked."""
    from wardround_server.runs.folder import find_run
    from wardround_server.runs.model_card import card_of

    card = card_of(find_run(server, run))
    print(json.dumps(card.to_json()) if as_json else card.to_text(), end="\n" if as_json else "")


@app.command(
    epilog="Example: wardround-server model export lidc-20261124-220105-e0b46f models/lidc --attack attack.json "
    "--server federation"
)
def export(
    run: RunArgument,
    target: TargetArgument,
    attack: AttackOption = None,
    force_unsafe: ForceOption = False,
    license_: LicenseOption = "other",
    by: ByForAuditOption = None,
    server: ServerOption = Path("."),
    as_json: JsonOption = False,
) -> None:
    """Export a model with ONNX file, MONAI bundle and model card, if its attack report keeps the bound of ε.

    Exit code 3: the release gate is closed. The audit log records every export.
    """
    from wardround.cli.app import require_person
    from wardround_server.runs.folder import find_run
    from wardround_server.runs.handover import export_run

    require_person(by)
    found = find_run(server, run)
    exported = export_run(found, target, attack=attack, force=force_unsafe, license=license_, who=by)
    print_exported(exported, as_json)


@app.command(epilog="Example: wardround-server model verify models/lidc")
def verify(folder: PackageArgument, as_json: JsonOption = False) -> None:
    """Check an exported model: hashes, architecture, ONNX file against torch, cards, bundle. Exit code 1: a fault."""
    print_findings(folder, as_json)
