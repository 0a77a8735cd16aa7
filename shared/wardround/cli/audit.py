"""The command group `audit`, the same in both programs: verifies and prints a log.

It works on any machine and without the daemon.
"""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import typer

from wardround.cli.options import JsonOption
from wardround.errors import UsageError
from wardround.printable import escaped

FileArgument = Annotated[Path, typer.Argument(metavar="FILE", help="The log: audit.jsonl of the folder, or a copy.")]
HASHES = ("study", "reply", "sha256", "ledger_head", "fingerprint")


def audit_app(program: str) -> typer.Typer:
    """Return the command group for `program`, whose name is used in the examples."""
    app = typer.Typer(
        help="What was decided, refused and released: an append-only log whose lines are chained by their hashes.",
        no_args_is_help=True,
        rich_markup_mode=None,
    )

    @app.command(epilog=f"Example: {program} audit verify audit.jsonl")
    def verify(file: FileArgument, as_json: JsonOption = False) -> None:
        """Check every line and that none is missing. Exit 1 names the fault. Note the head: it fixes all before it."""
        from wardround.records.audit_log import verified
        from wardround.records.refusal_counts import only_counted

        found, counted = verified(file), only_counted(file)
        if as_json:
            content = {"entries": found.head.entries, "head": found.head.sha256, "torn_bytes": len(found.torn)}
            print(json.dumps({**content, "only_counted": counted}))
            return
        print(f"whole  {found.head.entries} entries\nhead   {found.head.sha256}")
        if found.torn:
            print(f"torn   {len(found.torn)} bytes at the end, cut short by a kill; the next entry will name them")
        if counted:
            name = file.with_suffix(".refused").name
            print(f"beside {counted} refusals and repeated replies that are only counted so far, in {name}")

    @app.command(epilog=f"Example: {program} audit export audit.jsonl --since 2026-11-01")
    def export(
        file: FileArgument,
        since: Annotated[
            str | None, typer.Option("--since", metavar="DATE", help="Only from this day on, as 2026-11-01 (UTC).")
        ] = None,
        as_json: JsonOption = False,
    ) -> None:
        """Show the entries, a line each, after checking the whole log. --json: a JSON object a line."""
        from wardround.records.audit_log import verified

        first = "" if since is None else _day(since)
        for entry in verified(file).entries:
            if str(entry["at"]) >= first:
                print(json.dumps(entry) if as_json else escaped(line_of(entry)))

    return app


def line_of(entry: dict[str, Any]) -> str:
    """Return an entry as text: time, event and fields; an epsilon has its unit, relation, delta and accountant."""
    words = [f"{entry['number']:>6}", str(entry["at"]), f"{entry['event']:<15}"]
    for name, value in entry.items():
        if name in ("number", "at", "event"):
            continue
        if name == "epsilon":
            words.append(f"epsilon {value['epsilon']:.4g}" if value["epsilon"] != "inf" else "epsilon inf: no privacy")
            words.append(f"(per {value['unit']}, {value['relation']}, delta {value['delta']:g}, {value['accountant']})")
        else:
            words.append(f"{name} {value[:12] if name in HASHES else value}")
    return " ".join(words)


def _day(text: str) -> str:
    try:
        return date.fromisoformat(text).isoformat()
    except ValueError:
        raise UsageError(f"--since {text}: write the day as YYYY-MM-DD, for example 2026-11-01") from None
