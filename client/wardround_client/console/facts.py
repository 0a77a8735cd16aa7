"""What the pages of a site's console show, as plain values: data quality and rounds. `budget.py` has the budget.

Everything is read from the site's folder by the functions that the command line uses. Counts of patients are for the
hospital alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wardround.errors import WardroundError
from wardround.storage.disk_errors import cause
from wardround.web.audit_entries import entries_of
from wardround.web.texts import translations
from wardround_client.console.budget import names_of
from wardround_client.ledger.ledger import Attempt
from wardround_client.site.budget import opened_ledger
from wardround_client.site.paths import COHORT
from wardround_client.sources.images.quality.report import REPORT_JSON
from wardround_client.sources.registry import source_named

ROUNDS_SHOWN = 100
TEXTS = Path(__file__).with_name("texts")


def quality_of(folder: Path, language: str) -> dict[str, Any] | None:
    """Return the quality report of the prepared data, with its reasons in a language; None if there is none.

    Raises `WardroundError` if the report is damaged.
    """
    path = folder / COHORT / REPORT_JSON
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        kind = "records" if "stays" in content else "images"
        rows = {"records": "stays", "images": "images"}[kind]
        numbers = {name: int(content[name]) for name in ("files", rows, "patients", "unlabelled")}
        parts = {name: _reasons(content[name], kind, language) for name in ("quarantined", "remarks")}
        accounted = _accounted(content.get("accounted"))
        classes = [(str(name), int(one[rows]), int(one["patients"])) for name, one in content["classes"].items()]
    except FileNotFoundError:
        return None
    except OSError as error:
        raise WardroundError(f"{path}: cannot be read: {cause(error)}") from None
    except (ValueError, TypeError, KeyError, AttributeError):
        raise WardroundError(f"{path}: damaged; run wardround-site ingest again") from None
    notes = [str(note) for note in content.get("notes", ())]
    shown = {"kind": kind, "rows": numbers[rows], "classes": classes, "notes": notes, "accounted": accounted}
    return {**numbers, **parts, **shown}


def _accounted(content: dict[str, int] | None) -> dict[str, int] | None:
    """Return what became of all files or patients, and their sum; None in a report of an older version."""
    if content is None:
        return None
    found = {name: int(content[name]) for name in ("used", "put_aside", "left_out")}
    return {**found, "all": sum(found.values())}


def _reasons(counts: dict[str, int], kind: str, language: str) -> list[dict[str, Any]]:
    """Return code, count, title and advice of each reason, those that concern a patient's safety first."""
    found, words = [], translations(TEXTS / f"{kind}_reasons", language)
    reasons = source_named(kind).REASONS
    for code, count in counts.items():
        reason = reasons.get(code)
        title, advice = (code, "") if reason is None else (reason.title, reason.advice)
        title = words.get("title", {}).get(code, title)
        advice = words.get("advice", {}).get(code, advice)
        urgent = reason is not None and reason.error
        found.append({"code": code, "count": int(count), "title": title, "advice": advice, "urgent": urgent})
    return sorted(found, key=lambda one: (not one["urgent"], -one["count"]))


def rounds_of(folder: Path) -> list[dict[str, Any]]:
    """Return the last attempts of rounds, the newest first: what was trained, and whether and when its reply left.

    Raises `WardroundError` if the ledger or the audit log cannot be read.
    """
    ledger = opened_ledger(folder)
    try:
        attempts = ledger.attempts()[-ROUNDS_SHOWN:]
    finally:
        ledger.close()
    names, entries = names_of(folder), entries_of(folder)
    left = {one["reply"]: one["at"] for one in entries if one["event"] == "released" and not one.get("again")}
    return [_round(one, names, left) for one in reversed(attempts)]


def _round(attempt: Attempt, names: dict[str, str], left: dict[str, str]) -> dict[str, Any]:
    at = left.get(attempt.reply_sha256 or "")
    return {
        "study": names.get(attempt.study, attempt.study[:12]),
        "sha256": attempt.study,
        "run": attempt.run,
        "round": attempt.round,
        "purpose": attempt.purpose,
        "state": "lost" if attempt.reply_sha256 is None else "kept" if at is None else "sent",
        "at": at,
    }


def last_release(folder: Path) -> dict[str, Any] | None:
    """Return the last entry about a reply that was sent; None if there is none.

    Raises `WardroundError` if the audit log is damaged.
    """
    return next((one for one in reversed(entries_of(folder)) if one["event"] == "released"), None)


def last_refusal(folder: Path) -> dict[str, Any] | None:
    """Return the last entry about a refused message, or about a count of them; None if there is none.

    Replies that were sent again are counted in the same kind of entry, and are no refusals.

    Raises `WardroundError` if the audit log is damaged.
    """
    return next((one for one in reversed(entries_of(folder)) if _is_refusal(one)), None)


def _is_refusal(entry: dict[str, Any]) -> bool:
    refused = entry["refused"] if entry["event"] == "refusals" else entry["event"]
    return refused == "message-refused"


def shown_digest(sha256: str, runs: int, words: Sequence[tuple[str, str]]) -> str:
    """Return a hash of exactly what a person was shown about a study, so that an approval is of that and nothing else.

    It changes when the study's cost changes, for example because another study was approved meanwhile.
    """
    return hashlib.sha256(json.dumps([sha256, runs, list(words)]).encode()).hexdigest()
