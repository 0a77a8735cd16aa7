"""`wardround-site studies`: which studies were proposed, what each would do here, and who decides what about it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wardround.errors import UsageError
from wardround_client.cli_ledger import cap_of_site, opened_ledger
from wardround_client.tasks.weights import initial_network, trained_parameters

if TYPE_CHECKING:
    from wardround.study import Study
    from wardround_client.approvals import KnownStudy

app = typer.Typer(
    help="What this site trains: studies proposed, approved, refused and revoked, by whom and when.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
SiteOption = Annotated[Path, typer.Option("--site", metavar="DIR", help="The site's folder, with site.toml.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON and nothing else.")]
HashArgument = Annotated[str, typer.Argument(metavar="HASH", help="The study's hash, or its first letters.")]
ByOption = Annotated[str, typer.Option("--by", metavar="NAME", help="Who decides this: the name of a person.")]
WIDTH_OF_A_HASH = 12


@app.command("list", epilog="Example: wardround-site studies list --site hospital")
def list_(site: SiteOption = Path("."), as_json: JsonOption = False) -> None:
    """Every study this site has heard of, its state, and the last decision."""
    from wardround_client.approvals import known_studies

    _require_site(site)
    known = known_studies(site)
    if as_json:
        print(json.dumps([study_to_json(one) for one in known]))
        return
    for one in known:
        last = one.decisions[-1] if one.decisions else None
        decided = f"by {last['who']}, {last['at']}" if last else "nobody decided yet"
        print(f"{one.sha256[:WIDTH_OF_A_HASH]}  {one.state:<8}  {one.study.study.name}  {decided}")
    if not known:
        print("none; `wardround-site studies approve FILE` approves a study file, or the server submits one")


@app.command(epilog="Example: wardround-site studies show 3f9c2a71 --site hospital")
def show(study: HashArgument, site: SiteOption = Path("."), as_json: JsonOption = False) -> None:
    """A study in plain words: what it reads, what leaves, what it costs this site's patients now and after."""
    from wardround_client.approvals import find_study

    known = find_study(site, study)
    said = _in_words(site, known.study)
    if as_json:
        print(json.dumps({**study_to_json(known), "words": dict(said)}))
        return
    _print_words([*said, ("state", known.state), *_decisions_in_words(known)])


@app.command(epilog='Example: wardround-site studies approve 3f9c2a71 --by "Dr. Marie Curie" --site hospital')
def approve(
    study: Annotated[
        str, typer.Argument(metavar="HASH_OR_FILE", help="A proposal's hash or its first letters, or a study file.")
    ],
    by: ByOption,
    site: SiteOption = Path("."),
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask; the study was read elsewhere.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Let a study be trained here. Shows it, asks, and writes down who and when. Exit 3: the budget cannot hold it."""
    from wardround_client.approvals import approve as approve_study

    cap, asked = cap_of_site(site), _proposed(site, study)
    if not as_json:
        _print_words(_in_words(site, asked))
    if not yes and not _confirmed(f"Approve this study for {site.resolve().name}, as {by}?"):
        raise UsageError("not approved: nobody said yes; answer y, or give --yes")
    sha256 = approve_study(site, asked, by, opened_ledger(site), cap)
    _say_decision(sha256, "approved", by, as_json)


@app.command(epilog='Example: wardround-site studies refuse 3f9c2a71 --by "Dr. Marie Curie" --site hospital')
def refuse(study: HashArgument, by: ByOption, site: SiteOption = Path("."), as_json: JsonOption = False) -> None:
    """Say no to a proposed study. It can be approved later."""
    from wardround_client.approvals import decide_against, find_study

    known = find_study(site, study)
    decide_against(site, known, "refused", by)
    _say_decision(known.sha256, "refused", by, as_json)


@app.command(epilog='Example: wardround-site studies revoke 3f9c2a71 --by "Dr. Marie Curie" --site hospital')
def revoke(study: HashArgument, by: ByOption, site: SiteOption = Path("."), as_json: JsonOption = False) -> None:
    """Take an approval back: every later round of the study is refused. What was trained stays charged."""
    from wardround_client.approvals import decide_against, find_study

    known = find_study(site, study)
    decide_against(site, known, "revoked", by)
    _say_decision(known.sha256, "revoked", by, as_json)


def study_to_json(known: KnownStudy) -> dict[str, Any]:
    """What machines learn of a study and its decisions."""
    decisions = list(known.decisions)
    return {"sha256": known.sha256, "name": known.study.study.name, "state": known.state, "decisions": decisions}


def _proposed(site: Path, study: str) -> Study:
    from wardround.study import load_study
    from wardround_client.approvals import find_study

    return load_study(Path(study)) if study.endswith(".toml") else find_study(site, study).study


def _in_words(site: Path, study: Study) -> list[tuple[str, str]]:
    from wardround.study_words import Cost, describe
    from wardround_client.approvals import cost_of, received_at
    from wardround_client.config import load_site_config

    cap = cap_of_site(site)
    said = cost_of(study, opened_ledger(site), cap)
    refusal = None if said.refusal is None else str(said.refusal)
    cost = Cost(now=said.now, after=said.after, cap_epsilon=cap.epsilon, refusal=refusal)
    numbers = sum(parameter.numel() for parameter in trained_parameters(initial_network(study), study).values())
    config = load_site_config(site / "site.toml")
    received = received_at(site, study.sha256())
    asked_by = "nobody: it came as a file" if received is None else f"received {received}"
    if received is not None and config.server is not None:
        asked_by = f"the server at {config.server.address}, {asked_by}"
    words = {"asked_by": asked_by, "releases": config.release.evaluation}
    return describe(study, numbers_leaving=numbers, cost=cost, **words)


def _decisions_in_words(known: KnownStudy) -> list[tuple[str, str]]:
    return [("decided", f"{one['decision']} by {one['who']}, {one['at']}") for one in known.decisions]


def _confirmed(question: str) -> bool:
    import sys

    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _print_words(said: list[tuple[str, str]]) -> None:
    import textwrap

    for name, text in said:
        print(textwrap.fill(text, 100, initial_indent=f"{name:<9}", subsequent_indent=" " * 9, break_long_words=False))


def _say_decision(sha256: str, decision: str, who: str, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"sha256": sha256, "decision": decision, "who": who}))
    else:
        print(f"{sha256[:WIDTH_OF_A_HASH]}  {decision} by {who}")


def _require_site(site: Path) -> None:
    from wardround_client.config import load_site_config

    load_site_config(site / "site.toml")
