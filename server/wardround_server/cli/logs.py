"""`wardround-server logs`: the logs of the server and its runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wardround.cli.options import FollowOption, JsonLinesOption, LastOption, OfRunOption, ServerOption
from wardround.errors import UsageError
from wardround_server.operations.paths import LOGS


def logs(
    run: OfRunOption = None,
    site: Annotated[
        str | None, typer.Option("--site", metavar="NAME", help="Only entries that name this site.")
    ] = None,
    last: LastOption = None,
    follow: FollowOption = False,
    server: ServerOption = Path("."),
    as_json: JsonLinesOption = False,
) -> None:
    """Show the logs of the server and its runs as one, in order of time, including rotated files."""
    from wardround.operations.log_reader import Entry, names_place, show
    from wardround_server.operations.config import load_server_config
    from wardround_server.runs.folder import find_run
    from wardround_server.sites.registry import Registry

    load_server_config(server)
    asked = {"run": run, "site": site}
    if run is not None:
        find_run(server, run)
    if site is not None and all(one.name != site for one in Registry(server).sites(revoked=True)):
        raise UsageError(
            f"--site {site}: no such site was ever enrolled; `wardround-server sites list` lists all sites"
        )

    def wanted(entry: Entry) -> bool:
        return all(value is None or names_place(entry, name, value) for name, value in asked.items())

    named = [f"{name} {value}" for name, value in asked.items() if value is not None]
    whose = " and ".join(named) or "the server"
    show(server / LOGS, wanted, last=last, follow=follow, as_json=as_json, whose=whose)
