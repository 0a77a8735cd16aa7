"""Pages that both consoles have: the verified audit log, the daemon's health, and the logs."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from wardround.errors import WardroundError
from wardround.operations.health import asked
from wardround.operations.log_reader import PLACES, Entry, Logs
from wardround.records.audit_log import AUDIT_FILE, verified
from wardround.web.accounts.access import Operator, Reader, desk_of
from wardround.web.answers import page

ROWS, MOST_LOG_ROWS = 50, 200
ANSWER_TIMEOUT_S = 3.0
PROBLEMS = ("warning", "error", "critical", "unreadable")
SHORT = ("study", "reply", "sha256", "ledger_head", "fingerprint")  # hashes, of which the beginning is shown
LOGS = "logs"  # the folder of the logs, in a site's folder and in a server's

router = APIRouter()


@router.get("/audit")
def audit(
    request: Request,
    visitor: Reader,
    event: Annotated[str, Query(max_length=40)] = "",
    number: Annotated[int, Query(alias="page", ge=1, le=1_000_000)] = 1,
) -> Response:
    """What was decided, refused and released, after the whole log was verified."""
    desk = desk_of(request)
    path = desk.folder / AUDIT_FILE
    kinds = sorted(key.removeprefix("event.") for key in desk.pages.texts["en"] if key.startswith("event."))
    facts: dict[str, Any] = {"fault": None, "entries": None, "event": event if event in kinds else "", "kinds": kinds}
    if path.exists():
        try:
            found = verified(path)
        except WardroundError as error:
            return page(request, visitor, "audit.html.j2", **(facts | {"fault": str(error)}))
        chosen = [one for one in reversed(found.entries) if facts["event"] in ("", one["event"])]
        last = max(1, -(-len(chosen) // ROWS))
        number = min(number, last)
        names = desk.study_names(desk.folder)
        rows = [audit_row(one, kinds, names) for one in chosen[(number - 1) * ROWS : number * ROWS]]
        facts |= {"entries": found.head.entries, "head": found.head.sha256, "rows": rows}
        facts |= {"number": number, "last": last}
    return page(request, visitor, "audit.html.j2", **facts)


def audit_row(entry: dict[str, Any], kinds: list[str], names: Mapping[str, str]) -> dict[str, Any]:
    """Return an entry for the table: number, time, kind, and its other fields as (name, text).

    `names` has the names of studies by hash.
    """
    details = []
    for name, value in entry.items():
        if name in ("number", "at", "event"):
            continue
        if name == "epsilon":
            value = f"{value['epsilon']:.4g} (δ {value['delta']:g})" if value["epsilon"] != "inf" else "∞"
        elif name in SHORT:
            known = names.get(value) if name == "study" else None
            value = f"{value[:12]}…" if known is None else f"{known} ({value[:12]}…)"
        details.append((name.replace("_", " "), str(value)))
    kind = str(entry["event"])
    return {**{key: entry[key] for key in ("number", "at")}, "event": kind, "known": kind in kinds, "details": details}


@router.get("/health")
def health(request: Request, visitor: Reader) -> Response:
    """What the running daemon found when it last looked."""
    return page(request, visitor, "health.html.j2", **health_facts(desk_of(request).folder))


def health_facts(folder: Path) -> dict[str, Any]:
    """Return whether the daemon of a folder is serving, and its checks; or the fault if it does not answer."""
    try:
        answer = asked(folder, ANSWER_TIMEOUT_S)
    except WardroundError as error:
        return {"fault": str(error), "serving": False, "checked_at": None, "checks": ()}
    return {"fault": None, "serving": answer.serving, "checked_at": answer.checked_at, "checks": answer.checks}


@router.get("/logs")
def logs(
    request: Request,
    visitor: Operator,
    word: Annotated[str, Query(max_length=64)] = "",
    problems: Annotated[str, Query(max_length=1)] = "",
) -> Response:
    """The last entries of all logs of the folder. They may name files, and so are for those who run the machine."""
    folder = desk_of(request).folder / LOGS

    def wanted(entry: Entry) -> bool:
        text = f"{entry['text']} {' '.join(str(entry.get(name, '')) for name in PLACES)}"
        return (not problems or entry["level"] in PROBLEMS) and word.lower() in text.lower()

    found = deque(filter(wanted, Logs(folder).news()), maxlen=MOST_LOG_ROWS)
    rows = [_log_row(entry) for entry in reversed(found)]
    facts: dict[str, Any] = {"rows": rows, "word": word, "problems": bool(problems), "most": MOST_LOG_ROWS}
    return page(request, visitor, "logs.html.j2", **facts)


def _log_row(entry: Entry) -> dict[str, Any]:
    place = ", ".join(f"{name} {entry[name]}" for name in PLACES if name in entry)
    level = entry["level"]
    return {
        "at": entry["at"][:19].replace("T", " "),
        "level": level,
        "kind": level if level in PROBLEMS else "",
        "place": place,
        "text": entry["text"],
        "traceback": str(entry.get("traceback", "")),
    }
