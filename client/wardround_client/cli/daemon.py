"""`wardround-site start`: runs the site's daemon."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from wardround.cli.options import JsonStartOption, SiteOption

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
