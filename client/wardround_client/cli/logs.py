"""`wardround-site logs`: shows the log of the site's daemon."""

from __future__ import annotations

from pathlib import Path

from wardround.cli.options import FollowOption, JsonLinesOption, LastOption, OfRunOption, SiteOption
from wardround_client.site.paths import CONFIG_FILE, LOGS


def logs(
    run: OfRunOption = None,
    last: LastOption = None,
    follow: FollowOption = False,
    site: SiteOption = Path("."),
    as_json: JsonLinesOption = False,
) -> None:
    """Show the daemon's log, including rotated files. It may contain tracebacks: keep it inside the hospital."""
    from wardround.operations.log_reader import Entry, names_place, show
    from wardround_client.site.config import load_site_config

    load_site_config(site / CONFIG_FILE)

    def wanted(entry: Entry) -> bool:
        return run is None or names_place(entry, "run", run)

    whose = "this site" if run is None else f"run {run}"
    show(site / LOGS, wanted, last=last, follow=follow, as_json=as_json, whose=whose)
