"""The console of the operator: the federation in a browser, on loopback and never on the port of the hospitals."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from pydantic import ValidationError

from wardround.errors import UsageError
from wardround.web.accounts.users import OPERATE, READ
from wardround.web.app import Console
from wardround.web.config import ConsoleConfig
from wardround_server.console import models, overview, runs, sites
from wardround_server.operations.config import ServerConfig, load_server_config

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


def console_of(folder: Path, config: ConsoleConfig) -> Console:
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
    return Console(
        program=PROGRAM,
        name=server.name,
        folder=folder,
        config=config,
        pages=Path(__file__).parent,
        router=router,
        navigation=NAVIGATION,
    )
