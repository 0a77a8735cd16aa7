"""The output of `wardround-server show`: a run's state, round, sites with their failures, guarantee and bytes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

from wardround.text import bytes_text, count_text, epsilon_text, seconds_text
from wardround.wire.reply_codes import code_text
from wardround_server.runs.folder import DECIDED, RunFolder, quorum, read_json
from wardround_server.runs.paths import ROUND_FILE, STUDY_FILE
from wardround_server.sites.registry import Registry
from wardround_server.sites.software import software_of_sites

ROUNDS_SHOWN = 3
WORDS = {
    "approved": "approved",
    "proposed": "received, awaiting a decision",
    "refused": "refused by the site",
    "revoked": "approved, then revoked",
}


def facts_of(run: RunFolder) -> dict[str, Any]:
    """Return all facts about a run as plain JSON values.

    `words` is each site's last decision on the study, or a code. `sites` adds when the site made it, its software, and
    the reason if that is incompatible. `now` is the round under way if a process works on the run, otherwise None.
    """
    study, lines, decisions = run.study(), run.metrics(), run.approvals()
    at_work = run.at_work()
    return {
        "run": run.run_id,
        "study": study.study.name,
        "study_sha256": study.sha256(),
        "state": run.state(),
        "at_work": at_work,
        "round": max((line["round"] for line in lines), default=0),
        "rounds": study.study.rounds,
        "submitted_at": (run.path / STUDY_FILE).stat().st_mtime,
        "min_sites": quorum(study),
        "approved": list(run.approved()),
        "words": {site: one.state for site, one in sorted(decisions.items())},
        "sites": _sites(run, lines),
        "now": read_json(run.path / ROUND_FILE) if at_work else None,
        "problem": run.problem(),
        "epsilon_promised": str(study.privacy.epsilon),
        "delta": study.privacy.delta,
        "bytes_up": sum(line["bytes_up"] for line in lines),
        "bytes_down": sum(line["bytes_down"] for line in lines),
        "metrics": lines,
    }


def _sites(run: RunFolder, lines: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the facts about every site that is enrolled or appears in this run's replies."""
    decisions, software_at, now = run.approvals(), software_of_sites(run.server), time.time()
    enrolled = {site.name for site in Registry(run.server).sites()}
    found = {}
    for site in sorted(enrolled | set(decisions) | {line["site"] for line in lines}):
        word, software = decisions.get(site), software_at.get(site)
        found[site] = {
            "enrolled": site in enrolled,
            "word": None if word is None else word.state,
            "since": None if word is None else min(word.at, now),
            "software": None if software is None else str(software.software),
            "misfit": None if software is None else software.fault,
            "rounds_counted": sum(line["site"] == site and line["code"] is None for line in lines),
            "rounds_missed": sum(line["site"] == site and line["code"] is not None for line in lines),
        }
    return found


def headlines(facts: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines that are printed above the tables."""
    yield f"{facts['run']}: {facts['state']}, round {facts['round']} of {facts['rounds']}"
    yield (
        f"study {facts['study']} {facts['study_sha256'][:12]}, submitted {moment(facts['submitted_at'])}; "
        f"approved by {count_text(len(facts['approved']), 'site')}, {facts['min_sites']} needed"
    )
    yield f"promised: ε {epsilon_text(facts['epsilon_promised'])} at δ {facts['delta']:g} for each patient"
    yield f"replies {bytes_text(facts['bytes_up'])}, weights sent out {bytes_text(facts['bytes_down'])}"
    if facts["now"]:
        yield from _now(facts["now"])
    if facts["problem"]:
        problem = facts["problem"]
        yield f'last problem, {moment(problem["at"])}, in phase "{problem["phase"]}": {problem["error"]}'


def _now(now: Mapping[str, Any]) -> Iterator[str]:
    since = seconds_text(max(time.time() - now["began"], 0.0))
    yield f"round {now['round']} has been running for {since} of at most {seconds_text(now['deadline_s'])}"
    waited = [f"{site} (not connected)" if site in now["away"] else site for site in now["waiting_for"]]
    if waited:
        yield f"waiting for {', '.join(waited)}"
    for site, code in now["answered"].items():
        if code is not None:
            yield f"{site} is not counted: {code_text(code)} ({code})"


def site_rows(facts: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return rows of (site, decision on the study, since when, software, rounds in which it counted)."""
    rows: list[tuple[str, ...]] = []
    for site, one in facts["sites"].items():
        word = one["word"]
        if word is None:
            says = "not reached yet: not connected since the study was submitted"
        else:
            says = WORDS[word] if word in DECIDED else code_text(word)
        if not one["enrolled"]:
            says += "; no longer enrolled"
        runs = one["misfit"] or (one["software"] or "unknown")
        taken = one["rounds_counted"] + one["rounds_missed"]
        counted = f"{one['rounds_counted']} of {taken}" if taken else ""
        rows.append((site, says, "" if one["since"] is None else moment(one["since"]), runs, counted))
    return rows


def round_rows(facts: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return rows of (round, site, outcome of its reply, after how long, bytes) for the last `ROUNDS_SHOWN` rounds."""
    rows: list[tuple[str, ...]] = []
    for line in facts["metrics"]:
        if line["round"] > facts["round"] - ROUNDS_SHOWN:
            code = line["code"]
            became = "counted" if code is None else f"{code_text(code)} ({code})"
            size = bytes_text(line["bytes_up"]) if line["bytes_up"] else ""
            rows.append((str(line["round"]), line["site"], became, seconds_text(line["seconds"]), size))
    return rows


def moment(at: float) -> str:
    """Format seconds since 1970 as a date and time (UTC)."""
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(at))
