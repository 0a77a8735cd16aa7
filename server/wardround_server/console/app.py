"""The console of the operator: the federation in a browser, on loopback and never on the port of the hospitals."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from fastapi import APIRouter
from pydantic import ValidationError

from wardround.errors import UsageError, WardroundError
from wardround.web.accounts.users import OPERATE, READ
from wardround.web.app import WebConsole
from wardround.web.config import ConsoleConfig
from wardround_server.console import models, overview, runs, sites
from wardround_server.console.metrics import metrics_of
from wardround_server.operations.config import ServerConfig, load_server_config
from wardround_server.runs.folder import runs as all_runs

PROGRAM = "wardround-server"
NAVIGATION = (
    ("/", "nav.overview", READ),
    ("/runs", "nav.runs", READ),
    ("/sites", "nav.sites", READ),
    ("/models", "nav.models", READ),
    ("/audit", "nav.audit", READ),
    ("/health", "nav.health", READ),
    ("/logs", "nav.logs", OPERATE),
)


def console_of(folder: Path, config: ConsoleConfig) -> WebConsole:
    """Return the console of a server's folder.

    Raises `UsageError` if the folder is not a server's, or a port is one that hospitals connect to.
    """
    server = load_server_config(folder).server
    try:
        ServerConfig(server=server, console=config)
    except ValidationError as error:
        raise UsageError(error.errors()[0]["msg"].removeprefix("Value error, ")) from None
    router = APIRouter()
    for part in (overview, runs, sites, models):
        router.include_router(part.router)
    return WebConsole(
        program=PROGRAM,
        name=server.name,
        folder=folder,
        config=config,
        pages=Path(__file__).parent,
        router=router,
        navigation=NAVIGATION,
        metrics=metrics_of(folder),
        study_names=names_of,
    )


def names_of(folder: Path) -> dict[str, str]:
    """Return the names of the studies that were submitted, by hash; runs that cannot be read are left out."""
    names = {}
    for run in all_runs(folder):
        with suppress(WardroundError, OSError):
            study = run.study()
            names[study.sha256()] = study.study.name
    return names
