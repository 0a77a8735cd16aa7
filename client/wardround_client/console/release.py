"""Giving back what a run holds and has not used, as `wardround-site ledger release` does."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path as FilePath
from typing import Annotated

from fastapi import APIRouter, Path, Request
from starlette.responses import RedirectResponse, Response

from wardround.errors import UsageError
from wardround.web.accounts.access import Approver, Form, Visitor, desk_of
from wardround.web.accounts.sessions import same
from wardround.web.answers import page
from wardround_client.console.budget import Reserved, budget_of
from wardround_client.console.studies import Hash
from wardround_client.ledger.release import release_hold
from wardround_client.site.budget import opened_ledger

Run = Annotated[str, Path(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]

router = APIRouter()


@router.get("/ledger/release/{sha256}/{run}")
def confirm(request: Request, visitor: Approver, sha256: Hash, run: Run) -> Response:
    """The last page before a run gives back what it has not used."""
    return _confirmation(request, visitor, *_reserved(desk_of(request).folder, sha256, run))


@router.post("/ledger/release/{sha256}/{run}")
def release(request: Request, visitor: Approver, form: Form, sha256: Hash, run: Run) -> Response:
    """Give back what was shown, in the person's name."""
    folder = desk_of(request).folder
    held, decimals = _reserved(folder, sha256, run)
    if form.get("sure") != "yes":
        return _confirmation(request, visitor, held, decimals, fault="release.not_sure")
    if not same(form.get("shown", ""), _shown(held)):
        return _confirmation(request, visitor, held, decimals, fault="release.changed")
    ledger = opened_ledger(folder)
    try:
        release_hold(folder, ledger, sha256, run, visitor.user.person)
    finally:
        ledger.close()
    return RedirectResponse("/ledger?done=release", 303)


def _confirmation(
    request: Request, visitor: Visitor, held: Reserved, decimals: int, fault: str | None = None
) -> Response:
    status = 200 if fault is None else 409
    facts = {"held": held, "decimals": decimals, "shown": _shown(held), "fault": fault}
    return page(request, visitor, "release.html.j2", status=status, **facts)


def _reserved(folder: FilePath, sha256: str, run: str) -> tuple[Reserved, int]:
    """Return what a run still holds, and the decimals to show it with. Raises `UsageError` if it holds nothing."""
    budget = budget_of(folder)
    held = next((one for one in budget.reserved if (one.study, one.run) == (sha256, run)), None)
    if held is None:
        raise UsageError(f"the run {run} of the study {sha256[:12]} holds nothing here that could be given back")
    return held, budget.parts.decimals


def _shown(held: Reserved) -> str:
    """Return a hash of what the person was shown, so that the decision is about that."""
    return hashlib.sha256(json.dumps([held.study, held.run, held.used, held.held]).encode()).hexdigest()
