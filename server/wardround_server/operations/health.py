"""The checks that must pass for the server's daemon to report SERVING (`wardround.operations.health`)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from wardround.operations.health import Look
from wardround.operations.health_checks import Check, clock, disk
from wardround_server.operations.config import load_server_config
from wardround_server.operations.doctor import NEEDED_BYTES, authority, certificate, sites


def looks_of(folder: Path, superlink: Callable[[], Check]) -> list[Look]:
    """Return the daemon's checks; `superlink` checks whether Flower's SuperLink is up."""
    return [
        Look(name="superlink", look=superlink, todo="see logs/server.log"),
        Look(name="CA", look=lambda: authority(folder), todo="restore ca/ from a backup"),
        Look(
            name="certificate",
            look=lambda: certificate(folder, load_server_config(folder)),
            todo="run wardround-server init DIR --renew",
        ),
        Look(name="sites", look=lambda: sites(folder), todo="restore registry.sqlite3 from a backup"),
        Look(name="clock", look=clock, todo="switch on NTP"),
        Look(name="disk", look=lambda: disk(folder, NEEDED_BYTES), todo="free some space"),
    ]
