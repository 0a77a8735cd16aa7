"""`wardround-site start`: the daemon."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Annotated

import typer


def start(
    site: Annotated[Path, typer.Option("--site", help="The site's folder.")] = Path("."),
) -> None:
    """Take part in the federation until stopped (SIGTERM or Ctrl-C); for systemd or a terminal.

    Example: wardround-site start --site /srv/wardround
    """
    from wardround.supervisor import stop_on_signals
    from wardround_client.daemon import run_daemon

    stopped = threading.Event()
    stop_on_signals(stopped)
    run_daemon(site, stopped)
