"""The pages of a site's console that only show: overview, ledger, data and rounds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from wardround.errors import WardroundError
from wardround.web.accounts.access import Reader, desk_of, language_of
from wardround.web.answers import page
from wardround.web.record_pages import health_facts
from wardround_client.console.budget import budget_of
from wardround_client.console.facts import last_refusal, last_release, quality_of, rounds_of
from wardround_client.sources.opt_out import opted_out
from wardround_client.studies.approvals import known_studies

router = APIRouter()


@router.get("/")
def overview(request: Request, visitor: Reader) -> Response:
    """What needs a person now, and the state of everything else."""
    folder = desk_of(request).folder
    known = known_studies(folder)
    return page(
        request, visitor, "overview.html.j2",
        waiting=[one for one in known if one.state == "proposed"],
        approved=[one for one in known if one.state == "approved"],
        budget=_part(lambda: budget_of(folder)),
        quality=_part(lambda: quality_of(folder, language_of(request))),
        released=_part(lambda: last_release(folder)),
        refused=_part(lambda: last_refusal(folder)),
        health=health_facts(folder),
    )  # fmt: skip


@router.get("/ledger")
def ledger(request: Request, visitor: Reader, done: Annotated[str, Query(pattern="^(release)?$")] = "") -> Response:
    """The ledger as a picture: spent, reserved, promised and left of the cap, and by study."""
    budget = budget_of(desk_of(request).folder)
    may = visitor.user.may("approve")
    return page(request, visitor, "ledger.html.j2", budget=budget, may=may, done=done == "release")


@router.get("/data")
def data(request: Request, visitor: Reader) -> Response:
    """What was prepared, and what is in quarantine and why."""
    folder = desk_of(request).folder
    return page(
        request,
        visitor,
        "data.html.j2",
        quality=quality_of(folder, language_of(request)),
        objections=len(opted_out(folder)),
    )


@router.get("/rounds")
def rounds(request: Request, visitor: Reader) -> Response:
    """The last rounds: what was trained here, and when its reply left."""
    return page(request, visitor, "rounds.html.j2", rounds=rounds_of(desk_of(request).folder))


def _part(read: Callable[[], Any]) -> dict[str, Any]:
    """Return a part of the overview, or its fault, so that the other parts are still shown."""
    try:
        return {"fault": None, "found": read()}
    except (WardroundError, OSError) as error:
        return {"fault": " ".join(str(error).split()), "found": None}
