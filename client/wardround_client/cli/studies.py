"""`wardround-site studies`: list, show, approve, refuse and revoke the studies proposed to this site."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wardround.cli.options import ByOption, JsonOption, SiteOption
from wardround.errors import UsageError, required
from wardround.printable import escaped, lines_of
from wardround_client.site.budget import cap_of_site, opened_ledger
from wardround_client.site.paths import CONFIG_FILE
from wardround_client.studies.store import MOST_RUNS

if TYPE_CHECKING:
    from wardround.study.load import Study
    from wardround_client.studies.approvals import KnownStudy

app = typer.Typer(
    help="The studies of this site: proposed, approved, refused and revoked, by whom and when.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
HashArgument = Annotated[str, typer.Argument(metavar="HASH", help="The study's hash, or its first letters.")]
ReasonOption = Annotated[
    str | None, typer.Option("--reason", metavar="TEXT", help="Why, for this site alone: it is shown, and never sent.")
]
RUNS_HELP = "Total number of runs that may begin here, including those that have begun"
WIDTH_OF_A_HASH, WIDEST, LEAST_WIDTH = 12, 100, 10


@app.command("list", epilog="Example: wardround-site studies list --site hospital")
def list_(site: SiteOption = Path("."), as_json: JsonOption = False) -> None:
    """List every study known at this site, its state, and the last decision."""
    from wardround_client.studies.approvals import known_studies

    _require_site(site)
    known = known_studies(site)
    if as_json:
        print(json.dumps([study_to_json(one) for one in known]))
        return
    for one in known:
        if one.study is None:
            print(escaped(f"{one.sha256[:WIDTH_OF_A_HASH]}  {one.state}  {one.fault}"))
            continue
        decided = decision_text(one.decisions[-1]) if one.decisions else "no decision yet"
        print(escaped(f"{one.sha256[:WIDTH_OF_A_HASH]}  {one.state:<8}  {one.study.study.name}  {decided}"))
    if not known:
        print(
            "none; approve a study file with `wardround-site studies approve FILE`, or wait for the server's proposal"
        )


@app.command(epilog="Example: wardround-site studies show 3f9c2a71 --site hospital")
def show(
    study: HashArgument,
    runs: Annotated[
        int | None,
        typer.Option("--runs", metavar="N", min=1, max=MOST_RUNS, help=f"{RUNS_HELP}; default: as approved, or 1."),
    ] = None,
    site: SiteOption = Path("."),
    as_json: JsonOption = False,
) -> None:
    """Describe a study in plain words: what it reads, what leaves, and this site's privacy cost now and afterwards."""
    from wardround_client.studies.approvals import find_study
    from wardround_client.studies.description import described, identity
    from wardround_client.studies.store import runs_allowed

    known = find_study(site, study)
    found = required(known.study, "study")
    said = described(site, found, runs or runs_allowed(site, known.sha256))
    if as_json:
        print(json.dumps({**study_to_json(known), "words": dict(said)}))
        return
    _print_words([*said, ("state", known.state), *_decisions_in_words(known), *identity(found)])


@app.command(epilog='Example: wardround-site studies approve 3f9c2a71 --by "Dr. Marie Curie" --site hospital')
def approve(
    study: Annotated[
        str, typer.Argument(metavar="HASH_OR_FILE", help="A proposal's hash or its first letters, or a study file.")
    ],
    by: ByOption,
    runs: Annotated[
        int,
        typer.Option("--runs", metavar="N", min=1, max=MOST_RUNS, help=f"{RUNS_HELP}; all are charged to the budget."),
    ] = 1,
    reason: ReasonOption = None,
    site: SiteOption = Path("."),
    yes: Annotated[
        bool, typer.Option("--yes", help="Do not ask for confirmation; the study was read elsewhere.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Allow a study to be trained here. Shows it, asks, and records who and when. Exit 3: it exceeds the budget.

    One approval allows one run, unless --runs gives a larger number. A run that stopped or crashed resumes as the same
    run; the next run needs a person, who approves again with a larger number.
    """
    from wardround.text import count_text
    from wardround_client.studies.approvals import approve as approve_study
    from wardround_client.studies.description import described, identity

    cap, asked = cap_of_site(site), _proposed(site, study)
    if not as_json:
        _print_words([*described(site, asked, runs), *identity(asked)])
    question = f"Approve {count_text(runs, 'run')} of this study for {site.resolve().name}, as {by}?"
    if not yes and not _confirmed(question):
        raise UsageError("not approved, because it was not confirmed; answer y, or give --yes")
    ledger = opened_ledger(site)
    sha256 = approve_study(site, asked, by, ledger, cap, runs, reason)
    begun = ledger.runs_of(sha256)
    _say_decision(sha256, "approved", by, as_json, {"runs": runs, "runs_begun": begun})
    if not as_json and begun >= runs:
        advice = f"--runs {begun + 1} allows one more"
        print(f"no new run may begin: {count_text(begun, 'run')} of this study began here already; {advice}")


@app.command(epilog='Example: wardround-site studies refuse 3f9c2a71 --by "Dr. Marie Curie" --site hospital')
def refuse(
    study: HashArgument,
    by: ByOption,
    reason: ReasonOption = None,
    site: SiteOption = Path("."),
    as_json: JsonOption = False,
) -> None:
    """Refuse a proposed study. It can be approved later."""
    from wardround_client.studies.approvals import decide_against, find_study

    known = find_study(site, study)
    decide_against(site, known, "refused", by, reason)
    _say_decision(known.sha256, "refused", by, as_json)


@app.command(epilog='Example: wardround-site studies revoke 3f9c2a71 --by "Dr. Marie Curie" --site hospital')
def revoke(
    study: HashArgument,
    by: ByOption,
    reason: ReasonOption = None,
    site: SiteOption = Path("."),
    as_json: JsonOption = False,
) -> None:
    """Revoke an approval: every later round of the study is refused. What was trained stays charged."""
    from wardround_client.studies.approvals import decide_against, find_study

    known = find_study(site, study)
    decide_against(site, known, "revoked", by, reason)
    _say_decision(known.sha256, "revoked", by, as_json)


def study_to_json(known: KnownStudy) -> dict[str, Any]:
    """Return a study and its decisions for `--json`."""
    name = known.study.study.name if known.study else None
    said: dict[str, Any] = {"sha256": known.sha256, "name": name, "state": known.state, "runs": known.runs}
    said["decisions"] = list(known.decisions)
    said["asked_by"] = None if known.asker is None else asdict(known.asker)
    return said if known.fault is None else {**said, "fault": known.fault}


def decision_text(decision: dict[str, Any]) -> str:
    """Return who decided, when, for how many runs and why, as shown by `studies list` and `status`."""
    from wardround.text import count_text

    runs = f", for {count_text(decision['runs'], 'run')}" if "runs" in decision else ""
    reason = f": {decision['reason']}" if "reason" in decision else ""
    return f"by {decision['who']}, {decision['at']}{runs}{reason}"


def _proposed(site: Path, study: str) -> Study:
    from wardround.study.load import load_study
    from wardround_client.studies.approvals import find_study

    return load_study(Path(study)) if study.endswith(".toml") else required(find_study(site, study).study, "study")


def _decisions_in_words(known: KnownStudy) -> list[tuple[str, str]]:
    return [("decided", f"{one['decision']} {decision_text(one)}") for one in known.decisions]


def _confirmed(question: str) -> bool:
    import sys

    print(escaped(f"{question} [y/N] "), end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _print_words(said: list[tuple[str, str]]) -> None:
    """Print two columns that are never wider than the terminal.

    A line that the terminal wraps by itself would look like a line of this program.
    """
    import shutil

    width = min(shutil.get_terminal_size().columns, WIDEST)
    indent = max(len(name) for name, _ in said) + 2
    for name, text in said:
        first, *more = lines_of(escaped(text), max(width - indent, LEAST_WIDTH))
        print(f"{name:<{indent}}{first}")
        for line in more:
            print(" " * indent + line)


def _say_decision(sha256: str, decision: str, who: str, as_json: bool, more: dict[str, int] | None = None) -> None:
    from wardround.text import count_text

    if as_json:
        print(json.dumps({"sha256": sha256, "decision": decision, "who": who, **(more or {})}))
    else:
        runs = f", for {count_text(more['runs'], 'run')} in all" if more else ""
        print(f"{sha256[:WIDTH_OF_A_HASH]}  {decision} by {who}{runs}")


def _require_site(site: Path) -> None:
    from wardround_client.site.config import load_site_config

    load_site_config(site / CONFIG_FILE)
