"""The signed-in user of a request, the right that the request needs, and the forms that the user sends."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from fastapi import Depends, Request
from starlette.datastructures import QueryParams

from wardround.errors import WardroundError
from wardround.records.audit_events import ConsoleUsed
from wardround.records.audit_log import AUDIT_FILE, AuditLog
from wardround.web.accounts.limits import SignInLimits
from wardround.web.accounts.sessions import Session, Sessions, same
from wardround.web.accounts.users import APPROVE, OPERATE, READ, User, users_of
from wardround.web.config import ConsoleConfig
from wardround.web.limited_log import LimitedLog
from wardround.web.pages import Pages
from wardround.web.texts import choose_language

LANGUAGE_COOKIE = "language"

log = logging.getLogger(__name__)


class SignInNeeded(Exception):
    """The request has no session; the browser is sent to the sign-in page."""


class NotAllowed(Exception):
    """The user lacks the role that the request needs. `role` is that role."""

    def __init__(self, role: str) -> None:
        super().__init__(role)
        self.role = role


class FormRefused(Exception):
    """The form was not made for this session: it is old, or another web site sent it."""


@dataclass(frozen=True, kw_only=True)
class Desk:
    """What all requests of one console share."""

    folder: Path
    name: str  # of the site or federation
    program: str
    config: ConsoleConfig
    pages: Pages
    sessions: Sessions
    limits: SignInLimits
    navigation: tuple[tuple[str, str, str], ...]  # (path, key of its text, role that it needs)
    study_names: Callable[[Path], Mapping[str, str]]
    cookie: str
    refusals: LimitedLog


@dataclass(frozen=True, kw_only=True)
class Visitor:
    """A signed-in user with a session."""

    user: User
    session: Session


def desk_of(request: Request) -> Desk:
    return request.app.state.desk


def language_of(request: Request) -> str:
    """Return the language of the answer: as asked for, as before, or as the browser prefers."""
    cookie, accepted = request.cookies.get(LANGUAGE_COOKIE), request.headers.get("accept-language", "")
    return choose_language(request.query_params.get("language"), cookie, accepted)


def updates_itself(request: Request) -> bool:
    """Whether a page on the screen asks again by itself, without a person."""
    return request.headers.get("hx-request") == "true"


def visitor_of(request: Request) -> Visitor:
    """Return the signed-in user and the session. Raises `SignInNeeded` if there is none, or the user changed since.

    Behind a proxy that names the user, the session is that of the user named in this very request. A page that updates
    itself uses a session that there is, but neither keeps it nor begins one.
    """
    if (known := getattr(request.state, "visitor", None)) is not None:
        return known
    desk = desk_of(request)
    users = users_of(desk.folder)
    session = desk.sessions.find(request.cookies.get(desk.cookie), touch=not updates_itself(request))
    if desk.config.user_header is not None:
        named = request.headers.getlist(desk.config.user_header)
        user = users.get(named[0].strip().lower()) if len(named) == 1 else None
        if user is None:
            raise NotAllowed(READ)
        if session is None or session.fingerprint != user.fingerprint():
            if updates_itself(request):  # nobody is there: a page on a screen never begins a session
                raise SignInNeeded
            if not desk.sessions.of(user.login):  # a program without cookies would fill the audit log
                record(desk, "signed-in", user)
            request.state.new_token, session = desk.sessions.begin(user, request.state.address)
        request.state.visitor = Visitor(user=user, session=session)
        return request.state.visitor
    user = None if session is None else users.get(session.login)
    if session is None or user is None or user.fingerprint() != session.fingerprint:
        raise SignInNeeded
    request.state.visitor = Visitor(user=user, session=session)
    return request.state.visitor


def having(role: str) -> Callable[..., Visitor]:
    """Return the dependency of a page that needs a role."""

    def check(visitor: Annotated[Visitor, Depends(visitor_of)]) -> Visitor:
        if not visitor.user.may(role):
            raise NotAllowed(role)
        return visitor

    return check


Reader = Annotated[Visitor, Depends(having(READ))]
Approver = Annotated[Visitor, Depends(having(APPROVE))]
Operator = Annotated[Visitor, Depends(having(OPERATE))]


async def fields_of(request: Request) -> QueryParams:
    """Return the fields of a form. The guard has limited its length."""
    return QueryParams((await request.body()).decode("utf-8", "replace"))


def checked_form(
    visitor: Annotated[Visitor, Depends(visitor_of)], fields: Annotated[QueryParams, Depends(fields_of)]
) -> QueryParams:
    """Return the fields of a form that this session's own page sent. Raises `FormRefused`."""
    if not same(fields.get("csrf", ""), visitor.session.csrf):
        raise FormRefused
    return fields


Form = Annotated[QueryParams, Depends(checked_form)]


def record(desk: Desk, action: str, user: User) -> None:
    """Record a sign-in or sign-out in the audit log; if that fails, the log has the reason.

    A damaged log must not keep people from seeing that it is damaged. Decisions are not made without their entry: their
    functions record them.
    """
    try:
        AuditLog(desk.folder / AUDIT_FILE).append(ConsoleUsed(action=action, who=user.person))
    except WardroundError as error:
        log.error("%s of %s is not in the audit log: %s", action, user.login, error)
