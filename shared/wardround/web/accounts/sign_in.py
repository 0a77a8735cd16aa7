"""Signing in and out, and the own password."""

from __future__ import annotations

import secrets
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from starlette.datastructures import QueryParams
from starlette.responses import RedirectResponse, Response

from wardround.errors import WardroundError
from wardround.printable import quoted
from wardround.records.audit_events import ConsoleUsed
from wardround.records.audit_log import AUDIT_FILE, AuditLog
from wardround.web.accounts.access import (
    Form,
    FormRefused,
    Reader,
    SignInNeeded,
    desk_of,
    fields_of,
    language_of,
    record,
    visitor_of,
)
from wardround.web.accounts.sessions import same
from wardround.web.accounts.users import LOGIN, User, authenticate, set_password
from wardround.web.answers import page, set_cookie

VISIT = "-visit"  # the cookie of the sign-in form, beside that of the session
MINUTE_S = 60

router = APIRouter()


@router.get("/login")
def login_page(request: Request) -> Response:
    """The form, with the cookie that belongs to it."""
    try:
        visitor_of(request)
    except SignInNeeded:
        return _form(request)
    return RedirectResponse("/", 303)


@router.post("/login")
def login(request: Request, fields: Annotated[QueryParams, Depends(fields_of)]) -> Response:
    """Sign in: a new session, whatever cookie the browser had."""
    desk = desk_of(request)
    if desk.config.user_header is not None:
        raise FormRefused
    visit = request.cookies.get(desk.cookie + VISIT, "")
    if not visit or not same(fields.get("csrf", ""), desk.sessions.form_token(visit)):
        return _form(request, 403, "login.old_form")
    name, address = fields.get("login", "")[:64].strip().lower(), request.state.address
    if wait_s := desk.limits.wait_s(name, address):
        desk.refusals.warning("sign-in from %s is refused for %.0f s: too many failed", address, wait_s)
        return _form(request, 429, "login.wait", minutes=int(wait_s // MINUTE_S) + 1)
    user = authenticate(desk.folder, name, fields.get("password", ""))
    if user is None:
        # A name that no user could have may be a password in the wrong field, and is not logged.
        known = quoted(name) if LOGIN.fullmatch(name) else "no valid name"
        desk.refusals.warning("failed sign-in from %s as %s", address, known)
        return _form(request, 403, "login.wrong")
    desk.limits.succeeded(name, address)
    desk.sessions.end(request.cookies.get(desk.cookie))
    token, _ = desk.sessions.begin(user, address)
    record(desk, "signed-in", user)
    answer = RedirectResponse("/", 303)
    set_cookie(answer, desk, desk.cookie, token)
    answer.delete_cookie(
        desk.cookie + VISIT, path="/", secure=desk.config.behind_proxy, httponly=True, samesite="strict"
    )
    return answer


@router.post("/logout")
def logout(request: Request, visitor: Reader, form: Form) -> Response:
    """End the session."""
    desk = desk_of(request)
    desk.sessions.end(request.cookies.get(desk.cookie))
    record(desk, "signed-out", visitor.user)
    answer = RedirectResponse("/login", 303)
    answer.delete_cookie(desk.cookie, path="/", secure=desk.config.behind_proxy, httponly=True, samesite="strict")
    return answer


@router.get("/account")
def account(request: Request, visitor: Reader) -> Response:
    """Who is signed in, since when and from where, their roles, and a form for another password."""
    return page(request, visitor, "account.html.j2", fault=None)


@router.post("/account")
def change_password(request: Request, visitor: Reader, form: Form) -> Response:
    """Set another password: every session of the user ends, and a new one begins."""
    desk = desk_of(request)

    def again(fault: str, status: int = 400) -> Response:
        return page(request, visitor, "account.html.j2", status=status, fault=fault)

    if wait_s := desk.limits.wait_s(visitor.user.login, request.state.address):
        return again(_text(request, "login.wait", minutes=int(wait_s // MINUTE_S) + 1), 429)
    if desk.config.user_header is not None or not authenticate(
        desk.folder, visitor.user.login, form.get("password", "")
    ):
        return again(_text(request, "account.wrong"), 403)
    desk.limits.succeeded(visitor.user.login, request.state.address)
    if form.get("new", "") != form.get("again", ""):
        return again(_text(request, "account.differ"))

    def in_the_audit_log(user: User) -> None:  # no change of a user without its entry
        AuditLog(desk.folder / AUDIT_FILE).append(ConsoleUsed(action="user-changed", who=user.person))

    try:
        user = set_password(desk.folder, visitor.user.login, form.get("new", ""), in_the_audit_log)
    except WardroundError as error:
        return again(str(error))
    token, _ = desk.sessions.begin(user, request.state.address)
    answer = RedirectResponse("/", 303)
    set_cookie(answer, desk, desk.cookie, token)
    return answer


@router.post("/account/others")
def end_others(request: Request, visitor: Reader, form: Form) -> Response:
    """End all other sessions of the person who asks."""
    desk = desk_of(request)
    if desk.sessions.end_others(visitor.session):
        record(desk, "signed-out", visitor.user)
    return RedirectResponse("/account", 303)


def _form(request: Request, status: int = 200, fault: str | None = None, **values: int) -> Response:
    desk, visit = desk_of(request), secrets.token_urlsafe(32)
    answer = desk.pages.render(
        "login.html.j2", language_of(request), status, desk=desk, csrf=desk.sessions.form_token(visit),
        fault=None if fault is None else _text(request, fault, **values), path="/login", user=None,
    )  # fmt: skip
    set_cookie(answer, desk, desk.cookie + VISIT, visit)
    return answer


def _text(request: Request, key: str, **values: int) -> str:
    return desk_of(request).pages.texts[language_of(request)][key].format(**values)
