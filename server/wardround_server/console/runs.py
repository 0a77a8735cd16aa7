"""Runs: a list, each run live, and what the operator decides about them, through the functions of the command line."""

from __future__ import annotations

import time
import tomllib
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from starlette.responses import RedirectResponse, Response

from wardround.errors import StudyError, WardroundError
from wardround.printable import escaped
from wardround.study.load import Study, parse_study
from wardround.web.accounts.access import Form, Operator, Reader, Visitor, desk_of, language_of
from wardround.web.answers import page
from wardround.web.texts import code_in
from wardround_server.runs.decisions import resume_run, stop_run, submit_run
from wardround_server.runs.folder import RunFolder, find_run
from wardround_server.runs.folder import runs as all_runs
from wardround_server.runs.summary import facts_of, round_rows, site_rows

RunId = Annotated[str, Path(pattern=r"^[\w][\w.-]{0,127}$")]
What = Annotated[str, Path(pattern="^(stop|resume)$")]
PASTED = "the study"  # names the pasted text in the message of an error

router = APIRouter()


@router.get("/runs")
def runs(request: Request, visitor: Reader) -> Response:
    """All runs, the newest first."""
    found = [brief(run) for run in reversed(all_runs(desk_of(request).folder))]
    return page(request, visitor, "runs.html.j2", runs=found)


@router.get("/runs/submit")
def submit_page(request: Request, visitor: Operator) -> Response:
    """A form for a study's TOML text."""
    return page(request, visitor, "submit.html.j2", text="", fault=None)


@router.post("/runs/submit")
def submit(request: Request, visitor: Operator, form: Form) -> Response:
    """Propose a study to every site; each of them decides for itself."""
    text = form.get("text", "")
    try:
        run = submit_run(desk_of(request).folder, _study(text), PASTED, visitor.user.person)
    except StudyError as error:
        return page(request, visitor, "submit.html.j2", status=400, text=text, fault=str(error))
    return RedirectResponse(f"/runs/{run.run_id}", 303)


@router.get("/runs/{run}")
def show(request: Request, visitor: Reader, run: RunId) -> Response:
    """One run, which updates itself while it is under way."""
    return _show(request, visitor, run, "run.html.j2")


@router.get("/runs/{run}/live")
def live(request: Request, visitor: Reader, run: RunId) -> Response:
    """The part of a run's page that changes."""
    return _show(request, visitor, run, "live.html.j2")


@router.get("/runs/{run}/{what}")
def confirm(request: Request, visitor: Operator, run: RunId, what: What) -> Response:
    """The last page before a run is stopped or resumed."""
    found = find_run(desk_of(request).folder, run)
    return page(
        request, visitor, "confirm.html.j2", action=f"/runs/{run}/{what}", back=f"/runs/{run}", what=what,
        subject=found.run_id, fault=None,
    )  # fmt: skip


@router.post("/runs/{run}/{what}")
def decide(request: Request, visitor: Operator, form: Form, run: RunId, what: What) -> Response:
    """Stop or resume a run in the person's name."""
    found = find_run(desk_of(request).folder, run)
    if what == "stop":
        stop_run(found, visitor.user.person)
    else:
        resume_run(found, visitor.user.person)
    return RedirectResponse(f"/runs/{run}", 303)


def brief(run: RunFolder) -> dict[str, Any]:
    """Return a run's line in a list, with its `facts_of`; a run that cannot be read has its fault and nothing else."""
    nothing = {
        "study": "",
        "state": "unreadable",
        "round": 0,
        "rounds": 0,
        "approved": 0,
        "needed": 0,
        "at_work": False,
        "facts": None,
    }
    try:
        facts = facts_of(run)
    except (WardroundError, OSError, ValueError, KeyError) as error:
        return {"run": run.run_id, **nothing, "fault": " ".join(str(error).split())}
    shown = {name: facts[name] for name in ("run", "study", "state", "round", "rounds", "at_work")}
    shown |= {"approved": len(facts["approved"]), "needed": facts["min_sites"], "epsilon": facts["epsilon_promised"]}
    return {**shown, "submitted_at": facts["submitted_at"], "facts": facts, "fault": None}


def late_sites(facts: Mapping[str, Any], language: str) -> list[dict[str, Any]]:
    """Return the sites that a run waits for now, or that missed its last round, with the reason.

    `facts` are those of `facts_of`.
    """
    run_id, now, found = facts["run"], facts["now"], []
    if now is not None:
        for site in now["waiting_for"]:
            found.append({"run": run_id, "site": site, "round": now["round"], "away": site in now["away"], "code": ""})
        found += [
            {"run": run_id, "site": site, "round": now["round"], "away": False, "code": code}
            for site, code in now["answered"].items()
            if code is not None
        ]
    for line in facts["metrics"]:
        if line["round"] == facts["round"] and line["code"] is not None:
            more = {"round": line["round"], "away": False, "code": line["code"]}
            found.append({"run": run_id, "site": line["site"], **more})
    return [{**one, "why": code_in(language, one["code"]) if one["code"] else ""} for one in found]


def _show(request: Request, visitor: Visitor, run_id: str, template: str) -> Response:
    facts = facts_of(find_run(desk_of(request).folder, run_id))
    waited = None if facts["now"] is None else max(time.time() - facts["now"]["began"], 0.0)
    return page(
        request, visitor, template, facts=facts, waited_s=waited, sites=site_rows(facts), rounds=round_rows(facts),
        late=late_sites(facts, language_of(request)), looked_at=time.time(),
        under_way=facts["state"] in ("proposed", "training"), may=visitor.user.may("operate"),
    )  # fmt: skip


def _study(text: str) -> Study:
    """Read the pasted text of a study file. Raises `StudyError`, one line."""
    try:
        content = tomllib.loads(text.replace("\r\n", "\n"))
    except (ValueError, RecursionError) as error:
        raise StudyError(f"{PASTED}: not TOML: {escaped(str(error)[:200])}") from None
    return parse_study(content, PASTED)
