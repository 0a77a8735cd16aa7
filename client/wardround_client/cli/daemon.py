"""`wardround-site start` and `logs`: runs the site's daemon, and shows its log."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from wardround.cli.options import (
    FollowOption,
    JsonLinesOption,
    JsonStartOption,
    LastOption,
    OfRunOption,
    SiteOption,
)
from wardround_client.site.paths import CONFIG_FILE, LOGS

if TYPE_CHECKING:
    from wardround_client.site.config import SiteConfig


def start(
    site: SiteOption = Path("."),
    as_json: JsonStartOption = False,
) -> None:
    """Take part in the federation until stopped (SIGTERM or Ctrl-C). What happens is in logs/site.log."""
    from wardround.processes.supervisor import stop_on_signals
    from wardround_client.flower.daemon import run_daemon

    def ready(config: SiteConfig) -> None:
        server = config.server.address if config.server else ""
        started = {"site": config.name, "server": server, "process": os.getpid()}
        print(json.dumps(started) if as_json else f"{config.name} takes part at {server}", flush=True)

    stopped = threading.Event()
    stop_on_signals(stopped)
    run_daemon(site, stopped, ready)


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
