"""The commands that export and verify a model, as far as the programs of server and simulation share them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from wardround.handover.export import Exported

TargetArgument = Annotated[Path, typer.Argument(metavar="DIR", help="The new folder. Nothing is overwritten.")]
PackageArgument = Annotated[Path, typer.Argument(metavar="DIR", help="The folder of an exported model.")]
AttackOption = Annotated[
    Path | None,
    typer.Option("--attack", metavar="FILE", help="attack.json of `wardround-sim attack`, of a run of the same study."),
]
ForceOption = Annotated[
    bool,
    typer.Option("--force-unsafe", help="Export although the release gate is closed; the card then says so."),
]
LicenseOption = Annotated[
    str, typer.Option("--license", metavar="NAME", help="The model's licence, an SPDX name; other: not stated.")
]
VERIFY_LIMIT_S = 900.0


def print_exported(exported: Exported, as_json: bool) -> None:
    """Print where a model was exported, and a warning if it is unsafe."""
    from wardround.printable import escaped
    from wardround.storage.text_file import path_text

    record = exported.record
    if as_json:
        keys = ("run", "unsafe", "unsafe_reasons", "files")
        print(json.dumps({"folder": path_text(exported.folder), **{key: record[key] for key in keys}}))
        return
    print(escaped(f"exported {record['run']} to {path_text(exported.folder)}"))
    for reason in record["unsafe_reasons"]:
        print(escaped(f"UNSAFE: {reason}"))


def print_findings(folder: Path, as_json: bool) -> None:
    """Verify an exported model in a process of its own and print the findings. Exit code 1 if a check failed."""
    from wardround.cli.app import print_table
    from wardround.errors import ModelError
    from wardround.processes.isolated import run_isolated

    printed = run_isolated("wardround.handover.verify", [str(folder.absolute())], ModelError, VERIFY_LIMIT_S)
    findings = json.loads(printed.strip().splitlines()[-1])
    if as_json:
        print(json.dumps(findings))
    else:
        rows = [(one["name"], "pass" if one["passed"] else "FAIL", one["detail"]) for one in findings]
        print_table(("check", "verdict", "detail"), rows)
    if not all(one["passed"] for one in findings):
        raise typer.Exit(1)
