"""Sites: their keys, software and ledgers, the server's certificates, and the end of a site's admission."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path as FilePath
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from starlette.responses import RedirectResponse, Response

from wardround.errors import UsageError
from wardround.identity import in_groups, parse_request
from wardround.web.accounts.access import Approver, Form, Reader, desk_of
from wardround.web.accounts.sessions import same
from wardround.web.answers import page
from wardround_server.console.overview import certificates
from wardround_server.sites.decisions import (
    accept_ledger,
    add_site,
    end_site,
    require_enrolled,
    require_fingerprint,
)
from wardround_server.sites.ledger_heads import LedgerHeads
from wardround_server.sites.registry import Registry
from wardround_server.sites.software import software_of_sites

SiteName = Annotated[str, Path(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
What = Annotated[str, Path(pattern="^(revoke|remove|accept-ledger)$")]

PASTED = "the request"  # names the pasted text in the message of an error

router = APIRouter()


@router.get("/sites")
def sites(request: Request, visitor: Reader) -> Response:
    """Every site, also former ones, beside the server's own certificates."""
    folder = desk_of(request).folder
    return page(
        request, visitor, "sites.html.j2", sites=_rows(folder), certificates=certificates(folder),
        may=visitor.user.may("approve"),
    )  # fmt: skip


@router.get("/sites/enrol")
def enrol_page(request: Request, visitor: Approver) -> Response:
    """A form for a site's request and the fingerprint that it reads out by telephone."""
    return page(request, visitor, "enrol.html.j2", text="", fingerprint="", name="", fault=None)


@router.post("/sites/enrol")
def enrol(request: Request, visitor: Approver, form: Form) -> Response:
    """Enrol a site, in the person's name, if the fingerprint is that of the request's key."""
    text, fingerprint, name = (form.get(field, "").strip() for field in ("text", "fingerprint", "name"))
    try:
        asked = parse_request(text.encode(), PASTED)
        require_fingerprint(asked, fingerprint, PASTED)
        add_site(desk_of(request).folder, asked, name or None, visitor.user.person)
    except UsageError as error:
        return page(
            request, visitor, "enrol.html.j2", status=400, text=text, fingerprint=fingerprint, name=name,
            fault=str(error),
        )  # fmt: skip
    return RedirectResponse("/sites", 303)


@router.get("/sites/{name}/{what}")
def confirm(request: Request, visitor: Approver, name: SiteName, what: What) -> Response:
    """The last page before a site's admission ends, or another ledger of it is accepted."""
    folder = desk_of(request).folder
    require_enrolled(folder, name)
    return page(
        request, visitor, "confirm.html.j2", action=f"/sites/{name}/{what}", back="/sites", what=what, subject=name,
        fault=None, shown=_shown(folder, name),
    )  # fmt: skip


@router.post("/sites/{name}/{what}")
def decide(request: Request, visitor: Approver, form: Form, name: SiteName, what: What) -> Response:
    """Carry out a decision about a site in the person's name; it needs the site's name once more."""
    folder = desk_of(request).folder
    require_enrolled(folder, name)
    shown, differs = _shown(folder, name), form.get("again", "").strip() != name
    if differs or not same(form.get("shown", ""), shown):
        return page(
            request, visitor, "confirm.html.j2", status=409, action=f"/sites/{name}/{what}", back="/sites", what=what,
            subject=name, fault="confirm.differs" if differs else "confirm.changed", shown=shown,
        )  # fmt: skip
    if what == "accept-ledger":
        head = LedgerHeads(folder).known().get(name)
        accept_ledger(folder, name, visitor.user.person, None if head is None else head.sha256)
    else:
        end_site(folder, name, "revoked" if what == "revoke" else "removed", visitor.user.person)
    return RedirectResponse("/sites", 303)


def _shown(folder: FilePath, name: str) -> str:
    """Return a hash of the key and the ledger of a site as they are now, so that a decision is about these."""
    site = next(one for one in Registry(folder).sites() if one.name == name)
    head = LedgerHeads(folder).known().get(name)
    ledger = None if head is None else [head.entries, head.sha256]
    return hashlib.sha256(json.dumps([site.fingerprint, ledger]).encode()).hexdigest()


def _rows(folder: FilePath) -> list[dict[str, Any]]:
    software, ledgers = software_of_sites(folder), LedgerHeads(folder).known()
    rows = []
    for site in Registry(folder).sites(revoked=True):
        enrolled = site.revoked_at is None
        known, ledger = (software.get(site.name), ledgers.get(site.name)) if enrolled else (None, None)
        rows.append(
            {
                "name": site.name,
                "state": "enrolled" if enrolled else site.ended,
                "since": site.added if enrolled else site.revoked_at,
                "software": "" if known is None else str(known.software),
                "fault": None if known is None else known.fault,
                "last_reply_at": None if known is None else known.at,
                "ledger": None if ledger is None else ledger.entries,
                "fingerprint": in_groups(site.fingerprint),
            }
        )
    return rows
