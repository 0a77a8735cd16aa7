"""The federation at a glance: runs under way, sites that are late, certificates, the daemon, the last models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from wardround.errors import WardroundError
from wardround.operations.health_checks import Check, checked
from wardround.web.accounts.access import Reader, desk_of, language_of
from wardround.web.answers import page
from wardround.web.record_pages import health_facts
from wardround_server.console.runs import brief, late_sites
from wardround_server.operations.config import load_server_config
from wardround_server.operations.doctor import authority, certificate, versions
from wardround_server.runs.folder import runs as all_runs
from wardround_server.runs.model_card import released
from wardround_server.sites.registry import Registry

MODELS_SHOWN = 5

router = APIRouter()


@router.get("/")
def overview(request: Request, visitor: Reader) -> Response:
    """What needs the operator now, and the state of everything else."""
    folder = desk_of(request).folder
    config = load_server_config(folder)
    found = [brief(run) for run in reversed(all_runs(folder))]
    under_way = [one for one in found if one["state"] in ("proposed", "training")]
    return page(
        request, visitor, "overview.html.j2",
        address=f"{config.server.host}:{config.server.fleet_port}",
        under_way=under_way,
        late=[line for one in under_way for line in late_sites(one["facts"], language_of(request))],
        sites=_part(lambda: [asdict(site) for site in Registry(folder).sites()]),
        certificates=certificates(folder),
        models=[run.run_id for run in reversed(released(folder)[-MODELS_SHOWN:])],
        health=health_facts(folder),
    )  # fmt: skip


def certificates(folder: Path) -> list[Check]:
    """Return the checks of the CA, of the server's certificate, and of the sites' software."""
    config, todo = load_server_config(folder), "restore ca/ and tls/ from a backup"
    return [
        checked("CA", lambda: authority(folder), todo),
        checked("certificate", lambda: certificate(folder, config), todo),
        checked("versions", lambda: versions(folder), "restore registry.sqlite3 from a backup"),
    ]


def _part(read: Callable[[], Any]) -> dict[str, Any]:
    try:
        return {"fault": None, "found": read()}
    except (WardroundError, OSError) as error:
        return {"fault": " ".join(str(error).split()), "found": None}
