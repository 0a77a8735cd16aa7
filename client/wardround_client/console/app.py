"""The console of a site: what the people of a hospital see and decide in a browser."""

from __future__ import annotations

import threading
from pathlib import Path

from fastapi import APIRouter

from wardround.web.accounts.users import OPERATE, READ
from wardround.web.app import WebConsole
from wardround.web.config import ConsoleConfig
from wardround_client.console import pages, release, studies
from wardround_client.console.budget import names_of
from wardround_client.console.metrics import metrics_of
from wardround_client.site.config import load_site_config
from wardround_client.site.paths import CONFIG_FILE

PROGRAM = "wardround-site"
NAVIGATION = (
    ("/", "nav.overview", READ),
    ("/studies", "nav.studies", READ),
    ("/ledger", "nav.ledger", READ),
    ("/data", "nav.data", READ),
    ("/rounds", "nav.rounds", READ),
    ("/audit", "nav.audit", READ),
    ("/health", "nav.health", READ),
    ("/logs", "nav.logs", OPERATE),
)


def console_of(folder: Path, config: ConsoleConfig) -> WebConsole:
    """Return the console of a site's folder. Raises `UsageError` if the folder is not a site's."""
    router = APIRouter()
    for part in (pages, release, studies):
        router.include_router(part.router)
    return WebConsole(
        program=PROGRAM,
        name=load_site_config(folder / CONFIG_FILE).name,
        folder=folder,
        config=config,
        pages=Path(__file__).parent,
        router=router,
        navigation=NAVIGATION,
        metrics=metrics_of(folder),
        study_names=names_of,
    )


def warm_up() -> None:
    """Load torch in the background, so that the first study is shown without a pause."""

    def load() -> None:
        import wardround_client.studies.description  # noqa: F401

    threading.Thread(target=load, name="warm-up", daemon=True).start()
