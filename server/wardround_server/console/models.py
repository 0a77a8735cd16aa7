"""Released models and their cards."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from wardround.handover.card.figures import figures_heading, figures_lines, promised_line, released_weights_line
from wardround.web.accounts.access import Reader, desk_of, language_of
from wardround.web.answers import page
from wardround.web.texts import code_in
from wardround_server.console.runs import RunId
from wardround_server.runs.folder import find_run
from wardround_server.runs.handover import models as all_models
from wardround_server.runs.handover import stage_of
from wardround_server.runs.model_card import card_of

router = APIRouter()


@router.get("/models")
def models(request: Request, visitor: Reader) -> Response:
    """All released models, the newest first, and those whose files are damaged."""
    found, damaged = all_models(desk_of(request).folder)
    return page(request, visitor, "models.html.j2", models=found[::-1], damaged=damaged)


@router.get("/models/{run}")
def model(request: Request, visitor: Reader, run: RunId) -> Response:
    """A model's card, after its file was checked."""
    found = find_run(desk_of(request).folder, run)
    card = card_of(found).content
    figures = card["federated_test"]
    missing = [{**one, "why": code_in(language_of(request), one["code"])} for one in card["missing"]]
    return page(
        request, visitor, "model.html.j2", card=card, stage=stage_of(found), missing=missing,
        promised=promised_line(card["privacy"]), released=released_weights_line(card.get("released")),
        heading=None if figures is None else figures_heading(figures),
        figures=[] if figures is None else figures_lines(card["task"], figures),
    )  # fmt: skip
