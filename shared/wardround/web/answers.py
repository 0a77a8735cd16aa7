"""Answers to requests: a page for a signed-in user, the page of an error, and cookies."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse, Response

from wardround.errors import RefusedError, UsageError, WardroundError
from wardround.web.accounts.access import (
    Desk,
    FormRefused,
    NotAllowed,
    SignInNeeded,
    Visitor,
    desk_of,
    language_of,
    updates_itself,
    visitor_of,
)


def page(request: Request, visitor: Visitor, template: str, status: int = 200, **facts: Any) -> Response:
    """Return a page for a signed-in user, with its navigation and the token for its forms."""
    desk = desk_of(request)
    return desk.pages.render(
        template, language_of(request), status, desk=desk, user=visitor.user, session=visitor.session,
        csrf=visitor.session.csrf, path=request.url.path, **facts,
    )  # fmt: skip


def set_cookie(answer: Response, desk: Desk, name: str, value: str) -> None:
    """Set a cookie that no script can read, no other web site can send, and TLS alone carries behind a proxy."""
    answer.set_cookie(name, value, path="/", httponly=True, samesite="strict", secure=desk.config.behind_proxy)


def add_error_pages(app: FastAPI) -> None:
    """Let every error become a page with one line: what is wrong, where, and what to do."""

    def sign_in(request: Request, error: Exception) -> Response:
        if updates_itself(request) and desk_of(request).config.user_header is not None:
            desk, language = desk_of(request), language_of(request)  # to load the page again would sign in again
            return desk.pages.render("over.html.j2", language, 401)
        if updates_itself(request):
            return Response(status_code=401, headers={"hx-refresh": "true"})
        return RedirectResponse("/login", 303)

    def not_allowed(request: Request, error: Exception) -> Response:
        role = error.role if isinstance(error, NotAllowed) else ""
        desk_of(request).refusals.warning(
            "%s %s was refused: it needs the role %s", request.method, request.url.path, role
        )
        return _error(request, 403, "error.role", role=role)

    def form_refused(request: Request, error: Exception) -> Response:
        desk_of(request).refusals.warning(
            "%s %s was refused: its form has no valid token", request.method, request.url.path
        )
        return _error(request, 403, "error.form")

    def deliberate(request: Request, error: Exception) -> Response:
        status = 400 if isinstance(error, UsageError) else 409 if isinstance(error, RefusedError) else 503
        return _error(request, status, "error.fault", detail=" ".join(str(error).split()))

    def not_found(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 404
        return _error(request, status, "error.not_found")

    def unexpected(request: Request, error: Exception) -> Response:
        return _error(request, 500, "error.unexpected")

    handlers = {
        SignInNeeded: sign_in, NotAllowed: not_allowed, FormRefused: form_refused, WardroundError: deliberate,
        HTTPException: not_found, RequestValidationError: not_found, Exception: unexpected,
    }  # fmt: skip
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, handler)


def _error(request: Request, status: int, key: str, detail: str | None = None, **values: str) -> Response:
    desk, language = desk_of(request), language_of(request)
    try:
        visitor: Visitor | None = visitor_of(request)
    except (SignInNeeded, NotAllowed, WardroundError):
        visitor = None  # without a session only the error itself is shown
    return desk.pages.render(
        "error.html.j2", language, status, desk=desk, path=request.url.path,
        user=None if visitor is None else visitor.user, csrf="" if visitor is None else visitor.session.csrf,
        text=desk.pages.texts[language][key].format(**values), detail=detail,
    )  # fmt: skip
