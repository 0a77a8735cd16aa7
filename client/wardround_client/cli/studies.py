"""`wardround-site studies`: list, show, approve, refuse and revoke the studies proposed to this site."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wardround.cli.options import ByOption, JsonOption, SiteOption
from wardround.errors import UsageError, required
from wardround.printable import escaped, lines_of
from wardround_client.cli.ledger import cap_of_site, opened_ledger
from wardround_client.site.paths import COHORT, CONFIG_FILE
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
    from wardround_client.studies.store import runs_allowed

    known = find_study(site, study)
    found = required(known.study, "study")
    said = _in_words(site, found, runs or runs_allowed(site, known.sha256))
    if as_json:
        print(json.dumps({**study_to_json(known), "words": dict(said)}))
        return
    _print_words([*said, ("state", known.state), *_decisions_in_words(known), *_identity(found)])


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

    cap, asked = cap_of_site(site), _proposed(site, study)
    if not as_json:
        _print_words([*_in_words(site, asked, runs), *_identity(asked)])
    question = f"Approve {count_text(runs, 'run')} of this study for {site.resolve().name}, as {by}?"
    if not yes and not _confirmed(question):
        raise UsageError("not approved, because it was not confirmed; answer y, or give --yes")
    ledger = opened_ledger(site)
    sha256 = approve_study(site, asked, by, ledger, cap, runs)
    begun = ledger.runs_of(sha256)
    _say_decision(sha256, "approved", by, as_json, {"runs": runs, "runs_begun": begun})
    if not as_json and begun >= runs:
        advice = f"--runs {begun + 1} allows one more"
        print(f"no new run may begin: {count_text(begun, 'run')} of this study began here already; {advice}")


@app.command(epilog='Example: wardround-site studies refuse 3f9c2a71 --by "Dr. Marie Curie" --site hospital')
def refuse(study: HashArgument, by: ByOption, site: SiteOption = Path("."), as_json: JsonOption = False) -> None:
    """Refuse a proposed study. It can be approved later."""
    from wardround_client.studies.approvals import decide_against, find_study

    known = find_study(site, study)
    decide_against(site, known, "refused", by)
    _say_decision(known.sha256, "refused", by, as_json)


@app.command(epilog='Example: wardround-site studies revoke 3f9c2a71 --by "Dr. Marie Curie" --site hospital')
def revoke(study: HashArgument, by: ByOption, site: SiteOption = Path("."), as_json: JsonOption = False) -> None:
    """Revoke an approval: every later round of the study is refused. What was trained stays charged."""
    from wardround_client.studies.approvals import decide_against, find_study

    known = find_study(site, study)
    decide_against(site, known, "revoked", by)
    _say_decision(known.sha256, "revoked", by, as_json)


def study_to_json(known: KnownStudy) -> dict[str, Any]:
    """Return a study and its decisions for `--json`."""
    name = known.study.study.name if known.study else None
    said: dict[str, Any] = {"sha256": known.sha256, "name": name, "state": known.state, "runs": known.runs}
    said["decisions"] = list(known.decisions)
    return said if known.fault is None else {**said, "fault": known.fault}


def decision_text(decision: dict[str, Any]) -> str:
    """Return who decided, when, and for how many runs, as shown by `studies list` and `status`."""
    from wardround.text import count_text

    runs = f", for {count_text(decision['runs'], 'run')}" if "runs" in decision else ""
    return f"by {decision['who']}, {decision['at']}{runs}"


def _proposed(site: Path, study: str) -> Study:
    from wardround.study.load import load_study
    from wardround_client.studies.approvals import find_study

    return load_study(Path(study)) if study.endswith(".toml") else required(find_study(site, study).study, "study")


def _in_words(site: Path, study: Study, runs: int) -> list[tuple[str, str]]:
    from wardround.networks.build import initial_network
    from wardround.networks.weights import check_personalisation, trained_parameters
    from wardround.study.describe import Cost, describe
    from wardround_client.privacy.plan import plan_from_study
    from wardround_client.site.config import load_site_config
    from wardround_client.studies.approvals import alike, cost_of, received_at

    cap, ledger, plan = cap_of_site(site), opened_ledger(site), plan_from_study(study)
    said = cost_of(study, ledger, cap, runs)
    # Each patient is either trained on or held out, and does not change between runs of a study. For one run without
    # personalisation, the promise is the study's own epsilon.
    own = runs == 1 and study.personalisation is None
    trained = study.privacy.epsilon if own else plan.promised(runs).value
    cost = Cost(
        runs=runs,
        begun=ledger.runs_of(study.sha256()),
        noise_multiplier=plan.noise_multiplier,
        together=max(trained, runs * study.evaluation.epsilon),
        now=said.now,
        after=said.after,
        cap_epsilon=cap.epsilon,
        refusal=None if said.refusal is None else str(said.refusal),
    )
    network = initial_network(study)
    check_personalisation(network, study)
    numbers = sum(parameter.numel() for parameter in trained_parameters(network, study).values())
    config = load_site_config(site / CONFIG_FILE)
    received = received_at(site, study.sha256())
    asked_by = "no server: the study was given as a file" if received is None else f"received {received}"
    if received is not None and config.server is not None:
        asked_by = f"the server at {config.server.address}, {asked_by}"
    words = {"asked_by": asked_by, "releases": config.release.evaluation}
    shown = describe(study, numbers_leaving=numbers, cost=cost, alike=alike(site, study), **words)
    return [*shown, *_unfit(site, study)]


def _identity(study: Study) -> list[tuple[str, str]]:
    """Return the study's name and hash, repeated below its possibly long description, next to the question."""
    return [("study", study.study.name), ("hash", study.sha256())]


def _unfit(site: Path, study: Study) -> list[tuple[str, str]]:
    """Return how the prepared data differ from the study; empty if they fit or if there are none."""
    from wardround.errors import DataError
    from wardround_client.sources.cohort import open_cohort
    from wardround_client.sources.study_cohort import differences

    try:
        found = differences(open_cohort(site / COHORT), study)
    except DataError:  # no prepared data, or damaged ones: `doctor` reports it
        return []
    return [("prepared data", f"{'; '.join(found)}: run wardround-site ingest with this study's file")] if found else []


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
