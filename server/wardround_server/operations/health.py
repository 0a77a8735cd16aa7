"""The checks that must pass for the server's daemon to report SERVING (`wardround.operations.health`)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from wardround.operations.health import Probe
from wardround.operations.health_checks import Check, clock, disk
from wardround_server.operations.config import load_server_config
from wardround_server.operations.doctor import NEEDED_BYTES, authority, certificate, sites


def probes_of(folder: Path, superlink: Callable[[], Check]) -> list[Probe]:
    """Return the daemon's checks; `superlink` checks whether Flower's SuperLink is up."""
    return [
        Probe(name="superlink", run=superlink, todo="see logs/server.log"),
        Probe(name="CA", run=lambda: authority(folder), todo="restore ca/ from a backup"),
        Probe(
            name="certificate",
            run=lambda: certificate(folder, load_server_config(folder)),
            todo="run wardround-server init DIR --renew",
        ),
        Probe(name="sites", run=lambda: sites(folder), todo="restore registry.sqlite3 from a backup"),
        Probe(name="clock", run=clock, todo="switch on NTP"),
        Probe(name="disk", run=lambda: disk(folder, NEEDED_BYTES), todo="free some space"),
    ]
