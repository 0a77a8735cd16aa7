"""`wardround-site logs`: what the site's daemon wrote down as it worked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wardround_client.site.paths import CONFIG_FILE, LOGS


def logs(
    run: Annotated[str | None, typer.Option("--run", metavar="RUN", help="Only what names this run.")] = None,
    last: Annotated[
        int | None, typer.Option("--last", min=1, metavar="N", help="Only the last N of them; all without it.")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Go on with what comes, until Ctrl-C.")] = False,
    site: Annotated[Path, typer.Option("--site", metavar="DIR", help="The site's folder, with site.toml.")] = Path("."),
    as_json: Annotated[bool, typer.Option("--json", help="Print each entry as a line of JSON.")] = False,
) -> None:
    """The daemon's log, rotated files included. It may hold whole tracebacks: it is for the hospital's own eyes."""
    from wardround.operations.log_reader import Entry, names_place, show
    from wardround_client.site.config import load_site_config

    load_site_config(site / CONFIG_FILE)

    def wanted(entry: Entry) -> bool:
        return run is None or names_place(entry, "run", run)

    whose = "this site" if run is None else f"run {run}"
    show(site / LOGS, wanted, last=last, follow=follow, as_json=as_json, whose=whose)
