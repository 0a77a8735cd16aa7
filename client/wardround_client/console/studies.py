"""The studies of a site: what each of them asks for, and a person's decision, in the words of `studies show`."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Path, Query, Request
from starlette.datastructures import QueryParams
from starlette.responses import RedirectResponse, Response

from wardround.errors import UsageError, required
from wardround.records.audit_log import AUDIT_FILE, verified
from wardround.study.describe import REFUSED
from wardround.web.accounts.access import Approver, Form, Reader, Visitor, desk_of
from wardround.web.accounts.sessions import same
from wardround.web.answers import page
from wardround_client.console.facts import shown_digest
from wardround_client.console.plain import plain_of
from wardround_client.site.budget import cap_of_site, opened_ledger
from wardround_client.studies.approvals import (
    LONGEST_REASON,
    KnownStudy,
    approve,
    decide_against,
    find_study,
    known_studies,
)
from wardround_client.studies.store import MOST_RUNS, runs_allowed

Hash = Annotated[str, Path(pattern="^[0-9a-f]{64}$")]
Runs = Annotated[int, Query(ge=1, le=MOST_RUNS)]
What = Literal["approve", "refuse", "revoke"]
STATE_ORDER = ("proposed", "approved", "refused", "revoked", "unreadable")
POSSIBLE = {
    "proposed": ("approve", "refuse"),
    "approved": ("approve", "revoke"),
    "refused": ("approve",),
    "revoked": ("approve",),
}

router = APIRouter()


@router.get("/studies")
def studies(request: Request, visitor: Reader) -> Response:
    """Every study known here; those that wait for a decision first."""
    known = sorted(known_studies(desk_of(request).folder), key=lambda one: STATE_ORDER.index(one.state))
    return page(request, visitor, "studies.html.j2", known=known)


@router.get("/studies/{sha256}")
def study(
    request: Request, visitor: Reader, sha256: Hash, runs: Runs | None = None, done: What | None = None
) -> Response:
    """One study in plain words, for a number of runs, with what may be decided about it, or was just decided."""
    folder = desk_of(request).folder
    known = find_study(folder, sha256)
    count = runs or runs_allowed(folder, sha256)
    words = _words(request, known, count)
    return page(
        request, visitor, "study.html.j2", known=known, runs=count, words=words, done=done,
        plain=plain_of(folder, required(known.study, "study"), count),
        refused=dict(words).get("answer", "").startswith(REFUSED),
        possible=POSSIBLE.get(known.state, ()), most=MOST_RUNS, may=visitor.user.may("approve"),
    )  # fmt: skip


@router.get("/studies/{sha256}/{what}")
def confirm(request: Request, visitor: Approver, sha256: Hash, what: What, runs: Runs = 1) -> Response:
    """The last page before a decision: the study once more, who decides, and why."""
    return _confirmation(request, visitor, find_study(desk_of(request).folder, sha256), what, runs)


@router.post("/studies/{sha256}/{what}")
def decide(request: Request, visitor: Approver, form: Form, sha256: Hash, what: What) -> Response:
    """Carry out a decision about the study that was shown, in the person's name."""
    folder = desk_of(request).folder
    known = find_study(folder, sha256)
    reason, runs = " ".join(form.get("reason", "").split()), _runs(form)
    if form.get("sure") != "yes":
        return _confirmation(request, visitor, known, what, runs, fault="decide.not_sure", reason=reason)
    if what != "approve" and not reason:
        return _confirmation(request, visitor, known, what, runs, fault="decide.no_reason")
    if what == "approve":
        shown = shown_digest(sha256, runs, _words(request, known, runs))
        if not same(form.get("shown", ""), shown):
            return _confirmation(request, visitor, known, what, runs, fault="decide.changed", reason=reason)
        if (folder / AUDIT_FILE).exists():
            verified(folder / AUDIT_FILE)  # all of it: whoever approves relies on what the other pages show
        ledger = opened_ledger(folder)
        try:
            asked = required(known.study, "study")
            approve(folder, asked, visitor.user.person, ledger, cap_of_site(folder), runs, reason or None)
        finally:
            ledger.close()
    else:
        decide_against(folder, known, "refused" if what == "refuse" else "revoked", visitor.user.person, reason)
    return RedirectResponse(f"/studies/{sha256}?done={what}", 303)


def _confirmation(
    request: Request,
    visitor: Visitor,
    known: KnownStudy,
    what: str,
    runs: int,
    fault: str | None = None,
    reason: str = "",
) -> Response:
    if what not in POSSIBLE.get(known.state, ()):
        raise UsageError(f"{known.sha256[:12]}: is {known.state}; this decision is not possible now")
    words = _words(request, known, runs)
    return page(
        request, visitor, "decide.html.j2", status=200 if fault is None else 409, known=known, what=what, runs=runs,
        words=words, shown=shown_digest(known.sha256, runs, words), fault=fault, reason=reason[:LONGEST_REASON],
        longest=LONGEST_REASON, plain=plain_of(desk_of(request).folder, required(known.study, "study"), runs),
    )  # fmt: skip


def _words(request: Request, known: KnownStudy, runs: int) -> list[tuple[str, str]]:
    """Return what `wardround-site studies show` prints about the study."""
    from wardround_client.studies.description import described  # imports torch

    return described(desk_of(request).folder, required(known.study, "study"), runs)


def _runs(form: QueryParams) -> int:
    text = form.get("runs", "1")
    if not (len(text) <= 6 and text.isascii() and text.isdigit() and 1 <= int(text) <= MOST_RUNS):
        raise UsageError(f"the number of runs: give a number from 1 to {MOST_RUNS}")
    return int(text)
