"""Builds a console: its own pages, those of signing in, static files, and the guard around all of them."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from wardround.errors import UsageError
from wardround.storage.atomic import write_private
from wardround.storage.disk_errors import cause
from wardround.storage.folders import make_folder
from wardround.web import record_pages
from wardround.web.accounts import sign_in
from wardround.web.accounts.access import LANGUAGE_COOKIE, Desk
from wardround.web.accounts.limits import SignInLimits
from wardround.web.accounts.sessions import Sessions
from wardround.web.accounts.users import CONSOLE
from wardround.web.answers import add_error_pages, set_cookie
from wardround.web.config import ConsoleConfig
from wardround.web.guard import Guard
from wardround.web.limited_log import LimitedLog
from wardround.web.pages import load_pages, static_files
from wardround.web.texts import LANGUAGES

PROXY_SECRET = f"{CONSOLE}/proxy.secret"


@dataclass(frozen=True, kw_only=True)
class WebConsole:
    """What a program brings for its console.

    Attributes:
        program: The program, for example "wardround-site".
        name: The name of the site or the federation.
        folder: Its folder.
        config: `[console]` of its configuration.
        pages: The folder with `templates/` and `texts/`.
        router: Its pages.
        navigation: Path, key of the text and role of each page in the navigation.
        metrics: The parts of its metrics.
        study_names: Returns the names of the studies known in the folder, by hash.
    """

    program: str
    name: str
    folder: Path
    config: ConsoleConfig
    pages: Path
    router: APIRouter
    navigation: tuple[tuple[str, str, str], ...]
    metrics: Mapping[str, Callable[[], Iterable[Any]]] = field(default_factory=dict)
    study_names: Callable[[Path], Mapping[str, str]] = lambda folder: {}


def build(console: WebConsole) -> Guard:
    """Return the application. Raises `UsageError` if the proxy's secret cannot be read or made."""
    config = console.config
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    prefix = "__Host-" if config.behind_proxy else ""  # accepted by browsers with TLS only, and never of a subdomain
    app.state.desk = Desk(
        folder=console.folder,
        name=console.name,
        program=console.program,
        config=config,
        pages=load_pages(console.pages),
        sessions=Sessions(60.0 * config.idle_minutes, 3600.0 * config.longest_hours),
        limits=SignInLimits(),
        navigation=console.navigation,
        study_names=console.study_names,
        cookie=f"{prefix}{console.program}-{config.port}",
        refusals=LimitedLog(logging.getLogger(__name__)),
    )
    files = static_files()

    @app.get("/static/{name}")
    def static(name: str) -> Response:
        if name not in files:
            raise HTTPException(404)
        content, kind = files[name]
        return Response(content, media_type=kind)

    @app.middleware("http")
    async def keep_choices(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        """Store the language that was asked for, and the session of a user whom the proxy named."""
        answer = await call_next(request)
        asked = request.query_params.get("language")
        if asked in LANGUAGES:
            set_cookie(answer, app.state.desk, LANGUAGE_COOKIE, asked)
        if (token := getattr(request.state, "new_token", None)) is not None:
            set_cookie(answer, app.state.desk, app.state.desk.cookie, token)
        return answer

    app.include_router(sign_in.router)
    app.include_router(record_pages.router)
    app.include_router(console.router)
    add_error_pages(app)
    secret = proxy_secret(console.folder) if config.behind_proxy else None
    return Guard(app, config, config.port, secret)


def proxy_secret(folder: Path) -> str:
    """Return the secret that the reverse proxy must send, made at the first call.

    Raises `UsageError` if it cannot be read or made, is damaged or has fewer than 32 characters.
    """
    path, again = folder / PROXY_SECRET, "move it away, and start the console again to make a new one"
    try:
        if not path.exists():
            make_folder(path.parent)
            write_private(path, f"{secrets.token_urlsafe(32)}\n".encode())
        secret = path.read_text(encoding="ascii").strip()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read or made: {cause(error)}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path}: damaged; {again}") from None
    if len(secret) < 32:
        raise UsageError(f"{path}: is too short; {again}")
    return secret
