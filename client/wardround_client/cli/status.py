"""`wardround-site status`: a one-page summary of this site."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from wardround.cli.options import JsonOption, SiteOption
from wardround.printable import escaped
from wardround_client.cli.studies import decision_text
from wardround_client.site.budget import opened_ledger


def status(
    site: SiteOption = Path("."),
    as_json: JsonOption = False,
) -> None:
    """Show studies, decisions, last round, budget, cohort, objections. For this hospital only: nothing is sent."""
    from wardround_client.site.status import status_of

    found = status_of(site, opened_ledger(site))
    if as_json:
        print(json.dumps(found))
        return
    for name, text in lines_of(found):
        print(escaped(f"{name:<13} {text}"))


def lines_of(found: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the summary of `status_of` as (name, text) lines, with faults as text."""
    lines = [("site", str(found["site"]))]
    for name, say in SAID.items():
        part = found[name]
        text = [f"unknown: {part['fault']}"] if "fault" in part else say(part)
        lines += [(name.replace("_", " ") if number == 0 else "", text) for number, text in enumerate(text)]
    return lines


def _studies(part: dict[str, Any]) -> list[str]:
    text = []
    for one in part["known"]:
        last = one["last_decision"]
        by = f", {decision_text(last)}" if last else ""
        text.append(f"{one['sha256'][:12]}  {one.get('fault') or one['name']}: {one['state']}{by}")
    return text or ["none"]


def _release(part: dict[str, Any]) -> list[str]:
    entry = part["entry"]
    if entry is None:
        return ["none: nothing has left this site"]
    return [f"{entry['at']}  round {entry['round']} of run {entry['run']}, study {entry['study'][:12]}"]


def _refusal(part: dict[str, Any]) -> list[str]:
    from wardround.wire.reply_codes import code_text

    entry = part["entry"]
    if entry is None:
        return ["none"]
    code = entry["code"]
    text = code_text(code) if code.startswith(("failed", "late")) else code_text(f"refused:{code}")
    often = f", {entry['count']} times on {entry['day']}" if "count" in entry else ""
    return [f"{entry['at']}  {text}{often}"]


def _budget(part: dict[str, Any]) -> list[str]:
    first = part["spent"]
    text = ", ".join(f"{name} {_epsilon(part[name]['epsilon'])}" for name in ("spent", "held", "left"))
    meaning = f"per {first['unit']}, {first['relation']}, δ {first['delta']:g}, {first['accountant']}"
    return [f"ε {text} of {_epsilon(part['cap'])} ({meaning}; held includes spent)"]


def _epsilon(value: float | str) -> str:
    from wardround.text import epsilon_text

    return epsilon_text(value)


def _cohort(part: dict[str, Any]) -> list[str]:
    labels = ", ".join(f"{count} {name}" for name, count in part["images_of"].items())
    return [f"{part['patients']} patients, {part['images']} images: {labels}"]


def _objections(part: dict[str, Any]) -> list[str]:
    return [f"{part['patients']} patients"]


def _certificates(part: dict[str, Any]) -> list[str]:
    return [f"CA: {part['ca']}"]


def _daemon(part: dict[str, Any]) -> list[str]:
    faults = [f"{check['name']}: {check['found']}" for check in part["checks"] if check["state"] == "fault"]
    return ["SERVING" if part["serving"] else "NOT SERVING", *faults]


SAID = {
    "studies": _studies,
    "last_release": _release,
    "last_refusal": _refusal,
    "budget": _budget,
    "cohort": _cohort,
    "objections": _objections,
    "certificates": _certificates,
    "daemon": _daemon,
}
