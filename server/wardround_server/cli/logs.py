"""`wardround-server logs`: what the server and its runs wrote down as they worked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wardround.errors import UsageError
from wardround_server.operations.paths import LOGS


def logs(
    run: Annotated[str | None, typer.Option("--run", metavar="RUN", help="Only what names this run.")] = None,
    site: Annotated[str | None, typer.Option("--site", metavar="NAME", help="Only what names this site.")] = None,
    last: Annotated[
        int | None, typer.Option("--last", min=1, metavar="N", help="Only the last N of them; all without it.")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Go on with what comes, until Ctrl-C.")] = False,
    server: Annotated[
        Path, typer.Option("--server", metavar="DIR", help="The server's folder, with server.toml.")
    ] = Path("."),
    as_json: Annotated[bool, typer.Option("--json", help="Print each entry as a line of JSON.")] = False,
) -> None:
    """The logs of the server and of its runs as one, in the order of time, rotated files included."""
    from wardround.operations.log_reader import Entry, names_place, show
    from wardround_server.operations.config import load_server_config
    from wardround_server.runs.folder import find_run
    from wardround_server.sites.registry import Registry

    load_server_config(server)
    asked = {"run": run, "site": site}
    if run is not None:
        find_run(server, run)
    if site is not None and all(one.name != site for one in Registry(server).sites(revoked=True)):
        raise UsageError(f"--site {site}: no such site was ever enrolled; `wardround-server sites list` shows all")

    def wanted(entry: Entry) -> bool:
        return all(value is None or names_place(entry, name, value) for name, value in asked.items())

    named = [f"{name} {value}" for name, value in asked.items() if value is not None]
    whose = " and ".join(named) or "the server"
    show(server / LOGS, wanted, last=last, follow=follow, as_json=as_json, whose=whose)
