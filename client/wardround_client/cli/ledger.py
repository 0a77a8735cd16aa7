"""`wardround-site ledger`: the privacy spent on this site's patients, the budget left, and the ledger's integrity."""

from __future__ import annotations

import getpass
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wardround.cli.options import JsonOption, YesOption
from wardround.errors import UsageError
from wardround.printable import escaped
from wardround.storage.json_numbers import json_number
from wardround_client.site.budget import cap_of_site, opened_ledger
from wardround_client.site.paths import LEDGER_FILE

if TYPE_CHECKING:
    from rich.table import Table

    from wardround.accounting import Epsilon, Event
    from wardround_client.ledger.ledger import Cap, Hold, WhatIf

app = typer.Typer(
    help="The privacy budget of this site's patients: holds, charges and settlements in one append-only file.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
SiteOption = Annotated[
    Path, typer.Option("--site", metavar="DIR", help="The site's folder, with site.toml and ledger.sqlite3.")
]
WIDTH_OF_A_HASH = 12


@app.command(epilog="Example: wardround-site ledger show --site hospital")
def show(
    site: SiteOption = Path("."),
    prv_timeout: Annotated[
        float,
        typer.Option(
            "--prv-timeout", min=0, metavar="SECONDS", help="Time limit of the PRV accountant; 0: do not run it."
        ),
    ] = 10.0,
    as_json: JsonOption = False,
) -> None:
    """Show holds, attempts, and the epsilon spent, held and left. RDP decides; tighter figures are shown beside it."""
    from wardround_client.studies.approvals import promised

    cap = cap_of_site(site)
    ledger = opened_ledger(site)
    holds, head = ledger.holds(), ledger.head()
    spent, held, left = ledger.spent(cap.delta), ledger.committed(cap.delta), ledger.remaining(cap)
    promises = [event for events in promised(site, ledger).values() for event in events]
    with_promised = ledger.committed(cap.delta, promises)
    beside = _beside(ledger.events(), cap, prv_timeout)
    if as_json:
        content = {
            "holds": [_hold_to_json(hold, cap) for hold in holds],
            "cap": {"epsilon": json_number(cap.epsilon), "delta": cap.delta, "allow_no_privacy": cap.allow_no_privacy},
            "spent": spent.to_json(),
            "spent_by_other_accountants": [epsilon.to_json() for epsilon in beside],
            "held": held.to_json(),
            "with_promised": with_promised.to_json(),
            "remaining": left.to_json(),
            "entries": head.entries,
            "head": head.sha256,
        }
        print(json.dumps(content))
        return
    figures = [("spent", spent), *(("", epsilon) for epsilon in beside), ("spent or held", held)]
    figures += [("with what was promised to approved runs", with_promised)] if promises else []
    figures += [("remaining", left)]
    record = f"{head.entries} entries, head {head.sha256[:WIDTH_OF_A_HASH]}" if _path(site).exists() else "none yet"
    _print(_table_of_holds(holds, cap), _table_of_figures(figures, cap), _table_of_lines([("ledger", record)]))


@app.command(
    "what-if", epilog="Example: wardround-site ledger what-if studies/lidc.toml --set privacy.epsilon=3 --site hospital"
)
def what_if(
    study: Annotated[Path, typer.Argument(metavar="STUDY", help="The study file.")],
    site: SiteOption = Path("."),
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the study; may be repeated."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show what a study would cost this site and how many of its rounds are left. Writes nothing. Exit 3: refused."""
    from wardround.study.load import load_study
    from wardround_client.privacy.plan import plan_from_study

    cap = cap_of_site(site)
    loaded = load_study(study, tuple(set_ or ()))
    answer = opened_ledger(site).what_if(plan_from_study(loaded), cap)
    if as_json:
        content = {
            "study": loaded.study.name,
            "study_sha256": loaded.sha256(),
            "now": answer.now.to_json(),
            "after": answer.after.to_json(),
            "remaining": answer.remaining.to_json(),
            "rounds_asked": answer.rounds_asked,
            "rounds_affordable": answer.rounds_affordable,
            "refusal": None if answer.refusal is None else {"code": answer.refusal.code, "text": str(answer.refusal)},
        }
        print(json.dumps(content))
    else:
        figures = [
            ("spent or held", answer.now),
            ("with this study", answer.after),
            ("remaining now", answer.remaining),
        ]
        _print(_table_of_figures(figures, cap), _table_of_lines(_lines_of_what_if(answer)))
    if answer.refusal is not None:
        raise typer.Exit(answer.refusal.exit_code)


@app.command(epilog="Example: wardround-site ledger release 3f9c2a71 demo-20260101 --site hospital")
def release(
    study: Annotated[
        str, typer.Argument(metavar="STUDY_HASH", help="The study's hash, or its first 8 or more letters.")
    ],
    run: Annotated[str, typer.Argument(metavar="RUN", help="The run, as listed by `ledger show`.")],
    site: SiteOption = Path("."),
    who: Annotated[
        str | None, typer.Option("--who", metavar="NAME", help="Who decides this; default: the user's name.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Release the unused budget that a run holds. What it used stays charged; the run can no longer train here.

    It still counts as one of the runs that the study's approval allows.
    """
    from wardround_client.ledger.release import release_hold

    cap = cap_of_site(site)
    ledger = opened_ledger(site)
    known = [hold for hold in ledger.holds() if hold.run == run and len(study) >= 8 and hold.study.startswith(study)]
    if len(known) != 1:
        found = "no hold" if not known else "more than one hold"
        raise UsageError(f"{site}: {found} of a study {study} and run {run}; `wardround-site ledger show` lists them")
    hold = release_hold(site, ledger, known[0].study, run, who or getpass.getuser())
    left = ledger.remaining(cap)
    if as_json:
        print(json.dumps({"hold": _hold_to_json(hold, cap), "remaining": left.to_json()}))
    else:
        _print(_table_of_holds([hold], cap), _table_of_figures([("remaining", left)], cap))


@app.command(epilog="Example: wardround-site ledger verify --site hospital")
def verify(site: SiteOption = Path("."), as_json: JsonOption = False) -> None:
    """Check the whole file: its structure, every entry's hash, and that it is not an older copy. Exit 1: a fault."""
    if not _path(site).exists() and not _path(site).with_suffix(".head").exists():
        raise UsageError(f"{site}: there is no ledger yet; it is created when the first study is admitted")
    head = opened_ledger(site).verify()
    if as_json:
        print(json.dumps({"entries": head.entries, "head": head.sha256}))
    else:
        _print(_table_of_lines([("whole", f"{head.entries} entries"), ("head", head.sha256)]))


@app.command("accept-loss", epilog='Example: wardround-site ledger accept-loss --by "Ada Lovelace" --site hospital')
def accept_loss(
    by: Annotated[
        str, typer.Option("--by", metavar="NAME", help="Who decides this, for the ledger and the audit log.")
    ],
    entries: Annotated[
        int,
        typer.Option(
            "--entries", min=0, metavar="N", help="Number of entries that the server saw; `ledger.head` is also used."
        ),
    ] = 0,
    run: Annotated[
        list[str] | None,
        typer.Option("--run", metavar="HASH=RUN", help="A later run that is not in the audit log; may be repeated."),
    ] = None,
    yes: YesOption = False,
    site: SiteOption = Path("."),
    as_json: JsonOption = False,
) -> None:
    """Continue with an older copy because every newer one is lost. All that its runs held is charged in full.

    Those runs can no longer train here and count as begun. Later runs can train if an approval allows more runs and the
    cap has room for them. The runs are those in the copy and in the audit log; if the audit log is an old copy too, ask
    the operator which runs came later (`wardround-server runs`). Afterwards the operator accepts this ledger
    (`wardround-server sites accept-ledger`); until then the server refuses this site's replies.
    """
    from wardround_client.ledger.recovery import accept_loss as accept
    from wardround_client.ledger.recovery import loss_of

    cap = cap_of_site(site)
    parts = [named.partition("=") for named in run or ()]
    if not all(study and name for study, _, name in parts):
        raise UsageError("--run: give the study's hash and the run's id: HASH=RUN")
    loss = loss_of(site, entries, [(study, name) for study, _, name in parts])
    lines = [("this copy ends at", f"entry {loss.entries}"), ("newest known copy", f"{loss.seen} entries")]
    lines += [("charged in full", f"{study[:WIDTH_OF_A_HASH]} {name}") for study, name in (*loss.known, *loss.unknown)]
    if not as_json:
        _print(_table_of_lines(lines))
    if not yes:
        if as_json or not sys.stdin.isatty():
            raise UsageError("this cannot be undone; run it again with --yes to confirm")
        typer.confirm("Is every newer copy lost, and is this list of runs complete?", abort=True)
    ledger = accept(site, loss, by)
    head, spent, left = ledger.head(), ledger.spent(cap.delta), ledger.remaining(cap)
    if as_json:
        charged = [{"study_sha256": study, "run": name} for study, name in (*loss.known, *loss.unknown)]
        content = {"charged": charged, "missing_entries": loss.seen - loss.entries, "entries": head.entries}
        print(json.dumps({**content, "head": head.sha256, "spent": spent.to_json(), "remaining": left.to_json()}))
    else:
        _print(_table_of_figures([("spent", spent), ("remaining", left)], cap))


def _path(site: Path) -> Path:
    return site / LEDGER_FILE


def _beside(events: list[Event], cap: Cap, prv_timeout_s: float) -> list[Epsilon]:
    """Return the figures that do not gate.

    The figure is exact if every patient took part in every step; otherwise it is from the PRV accountant, if that
    finishes within its time limit.
    """
    from wardround.accounting import spent_exactly, spent_prv

    exact = spent_exactly(events, cap.delta)
    if exact is not None or not prv_timeout_s:
        return [exact] if exact and events else []
    prv = spent_prv(events, cap.delta, prv_timeout_s)
    return [prv] if prv else []


def _state(hold: Hold) -> str:
    if hold.released_by is not None:
        return f"released by {hold.released_by}"
    return "open" if any(hold.attempts_left.values()) else "used up"


def _hold_to_json(hold: Hold, cap: Cap) -> dict[str, Any]:
    from wardround.accounting import spent

    attempts = {
        purpose: {"held": share.attempts, "used": hold.used[purpose], "settled": hold.settled[purpose]}
        for purpose, share in hold.shares.items()
    }
    epsilon = spent(hold.spent(), cap.delta).to_json()
    return {"study_sha256": hold.study, "run": hold.run, "state": _state(hold), "attempts": attempts, "spent": epsilon}


def _table_of_holds(holds: list[Hold], cap: Cap) -> Table:
    from rich.table import Table

    from wardround.accounting import spent

    table = Table(box=None, pad_edge=False)
    for name in ("study", "run", "purpose"):
        table.add_column(name, overflow="fold")
    for name in ("held", "used", "settled", "ε spent"):
        table.add_column(name, justify="right")
    table.add_column("state", overflow="fold")
    for hold in holds:
        for purpose, share in hold.shares.items():
            numbers = [share.attempts, hold.used[purpose], hold.settled[purpose]]
            epsilon = f"{spent(hold.spent(purpose), cap.delta).value:.3g}"
            names = [hold.study[:WIDTH_OF_A_HASH], escaped(hold.run), purpose]
            table.add_row(*names, *map(str, numbers), epsilon, _state(hold))
    if not holds:
        table.add_row("none")
    return table


def _table_of_figures(figures: list[tuple[str, Epsilon]], cap: Cap) -> Table:
    """Return a table of epsilons by name, each with its delta and accountant.

    The unit and the relation are the same for all of them, and are in the header.
    """
    from rich.table import Table

    first = figures[0][1]
    table = Table(box=None, pad_edge=False)
    table.add_column(f"per {first.unit} ({first.relation})")
    table.add_column("ε", justify="right")
    table.add_column("δ", justify="right")
    table.add_column("accountant", overflow="fold")
    for name, epsilon in figures:
        table.add_row(name, f"{epsilon.value:.3g}", f"{epsilon.delta:g}", epsilon.accountant)
    table.add_row("cap", f"{cap.epsilon:g}", f"{cap.delta:g}", "(site.toml)")
    return table


def _lines_of_what_if(answer: WhatIf) -> list[tuple[str, str]]:
    affordable = "not limited" if answer.rounds_affordable is None else str(answer.rounds_affordable)
    return [
        ("rounds asked", f"{answer.rounds_asked}, including spare rounds"),
        ("rounds affordable", affordable),
        ("answer", "it would be admitted" if answer.refusal is None else f"refused: {answer.refusal}"),
    ]


def _table_of_lines(lines: list[tuple[str, str]]) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column("name")
    table.add_column("value", overflow="fold")
    for line in lines:
        table.add_row(*line)
    return table


def _print(*tables: Table) -> None:
    from wardround.cli.app import literal_console

    console = literal_console()
    for number, table in enumerate(tables):
        if number:
            console.print()
        console.print(table)
