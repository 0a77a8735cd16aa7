"""`wardround-server model`: list, show and export the released models of all runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from wardround.cli.options import JsonOption, ServerOption

app = typer.Typer(
    help="The released models: list them, show their model cards, export a copy.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="The run's id, as `model list` shows it.")]


@app.command("list", epilog="Example: wardround-server model list --server federation")
def list_(server: ServerOption = Path("."), as_json: JsonOption = False) -> None:
    """List the released models: run, network, ε and δ, rounds, date, file hash. Exit code 1: a model is damaged."""
    from wardround.cli.app import print_table
    from wardround.printable import escaped
    from wardround.text import epsilon_text
    from wardround_server.operations.config import load_server_config

    load_server_config(server)
    found, damaged = _summaries(server)
    if as_json:
        print(json.dumps([*found, *damaged]))
    else:
        columns = ("run", "network", "epsilon", "delta", "rounds", "finished", "sha256")
        rows: list[tuple[str, ...]] = [
            (one["run"], one["architecture"], epsilon_text(one["epsilon"]), f"{one['delta']:g}", str(one["rounds"]),
             one["finished_at"] or "unknown", f"{one['sha256'][:16]}…")
            for one in found
        ]  # fmt: skip
        print_table(columns, rows or [("none", *[""] * 6)])
        for one in damaged:
            print(escaped(f"{one['run']}: {one['fault']}"))
    if damaged:
        raise typer.Exit(1)


@app.command(epilog="Example: wardround-server model show lidc-20261124-220105-e0b46f --server federation")
def show(run: RunArgument, server: ServerOption = Path("."), as_json: JsonOption = False) -> None:
    """Show a model card: study, data, privacy, sites, missing replies, figures. The model file is checked."""
    from wardround_server.runs.folder import find_run
    from wardround_server.runs.model_card import card_of

    card = card_of(find_run(server, run))
    print(json.dumps(card.to_json()) if as_json else card.to_text(), end="\n" if as_json else "")


@app.command(
    epilog="Example: wardround-server model export lidc-20261124-220105-e0b46f models/lidc --server federation"
)
def export(
    run: RunArgument,
    target: Annotated[
        Path,
        typer.Argument(
            metavar="DIR|FILE", help="A folder, or a file name that ends in .safetensors. Existing files are refused."
        ),
    ],
    server: ServerOption = Path("."),
    as_json: JsonOption = False,
) -> None:
    """Copy the model (safetensors) and its card, as Markdown and as JSON. Overwrites nothing."""
    from wardround_server.runs.folder import find_run
    from wardround_server.runs.model_card import card_of, written

    found = find_run(server, run)
    card = card_of(found)
    files = [str(path) for path in written(card, found, target)]
    if as_json:
        print(json.dumps({"run": card.run, "sha256": card.content["sha256"], "files": files}))
    else:
        print(f"wrote {', '.join(files)}")


def _summaries(server: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return a summary of each released model, and the run and fault of each damaged one."""
    from wardround.errors import WardroundError
    from wardround_server.runs.model_card import released, summary_of

    found, damaged = [], []
    for run in released(server):
        try:
            found.append(summary_of(run))
        except WardroundError as error:
            damaged.append({"run": run.run_id, "fault": str(error)})
    return found, damaged
