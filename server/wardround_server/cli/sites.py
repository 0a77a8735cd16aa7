"""`wardround-server sites`: enrol, list, revoke and remove sites, and accept a site's ledger."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from wardround.cli.app import print_table, require_person
from wardround.cli.options import ByForAuditOption, ByOption, JsonOption, ServerOption, YesOption
from wardround.errors import UsageError

if TYPE_CHECKING:
    from wardround_server.sites.registry import EnrolledSite, Registry

app = typer.Typer(
    help="The sites that may take part, each enrolled by a key whose fingerprint was compared by telephone.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The site's name, as `sites list` shows it.")]


@app.command(
    epilog="Example: wardround-server sites add north.enrol.json --fingerprint "
    "04b29c7e51d3f8a604b29c7e51d3f8a604b29c7e51d3f8a604b29c7e51d3f8a6 --server federation"
)
def add(
    request: Annotated[
        Path, typer.Argument(metavar="REQUEST_FILE", help="The enrolment request written by the site's `init`.")
    ],
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="Use a different name from the one requested.")
    ] = None,
    fingerprint: Annotated[
        str | None,
        typer.Option("--fingerprint", metavar="DIGITS", help="The fingerprint that the site reads out by telephone."),
    ] = None,
    by: ByForAuditOption = None,
    server: ServerOption = Path("."),
    as_json: JsonOption = False,
) -> None:
    """Enrol a site after comparing its key's fingerprint by telephone: type it in, or confirm the one shown."""
    from wardround.identity import in_groups, read_request
    from wardround_server.sites.certificates import check_site_key
    from wardround_server.sites.decisions import add_site, require_fingerprint

    _registry(server)
    asked = read_request(request)
    check_site_key(asked.public_key)
    if fingerprint is not None:
        require_fingerprint(asked, fingerprint, str(request))
    elif as_json or not sys.stdin.isatty():
        raise UsageError("--fingerprint is missing: ask the site to read out its key's fingerprint by telephone")
    else:
        print(f"{asked.name} requests enrolment with the key  {in_groups(asked.fingerprint)}")
        if not typer.confirm("Does the site read out the same 64 digits by telephone?"):
            raise UsageError(f"{request}: was not enrolled")
    require_person(by)
    _say(add_site(server, asked, name, by), "is enrolled", as_json)


@app.command("list", epilog="Example: wardround-server sites list --server federation")
def list_(server: ServerOption = Path("."), as_json: JsonOption = False) -> None:
    """List all sites, including removed ones: state, key's fingerprint, and the software and number of ledger entries
    as of the site's last reply.
    """
    from dataclasses import asdict

    from wardround_server.sites.ledger_heads import LedgerHeads
    from wardround_server.sites.software import software_of_sites

    sites, software = _registry(server).sites(revoked=True), software_of_sites(server)
    ledgers = LedgerHeads(server).known()
    if as_json:
        beside = [
            {
                "software": asdict(software[site.name].software) if site.name in software else None,
                "ledger": asdict(ledgers[site.name]) if site.name in ledgers else None,
            }
            for site in sites
        ]
        print(json.dumps([site.to_json() | more for site, more in zip(sites, beside, strict=True)]))
        return
    from wardround.identity import in_groups

    rows = []
    for site in sites:
        state, since = ("enrolled", site.added) if site.revoked_at is None else (site.ended or "", site.revoked_at)
        runs = str(software[site.name].software) if site.name in software and site.revoked_at is None else ""
        ledger = str(ledgers[site.name].entries) if site.name in ledgers and site.revoked_at is None else ""
        rows.append((site.name, state, since[:10], runs, ledger, in_groups(site.fingerprint)))
    columns = ("site", "state", "since", "software", "ledger", "key's fingerprint")
    print_table(columns, rows or [("none", "", "", "", "", "")])


@app.command(epilog="Example: wardround-server sites revoke north --yes --server federation")
def revoke(
    name: NameArgument,
    yes: YesOption = False,
    by: ByForAuditOption = None,
    server: ServerOption = Path("."),
    as_json: JsonOption = False,
) -> None:
    """Refuse a site's key permanently, for example after a theft. The site can be enrolled again with a new key."""
    _end(server, name, "revoked", f"Permanently refuse the key of {name}?", yes, by, as_json)


@app.command(epilog="Example: wardround-server sites remove north --yes --server federation")
def remove(
    name: NameArgument,
    yes: YesOption = False,
    by: ByForAuditOption = None,
    server: ServerOption = Path("."),
    as_json: JsonOption = False,
) -> None:
    """Stop admitting a site, for example when it leaves. To return, it needs a new key in a new folder."""
    _end(server, name, "removed", f"Stop admitting {name}?", yes, by, as_json)


@app.command(
    "accept-ledger",
    epilog='Example: wardround-server sites accept-ledger north --by "Ada Lovelace" --server federation',
)
def accept_ledger(
    name: NameArgument,
    by: ByOption,
    yes: YesOption = False,
    server: ServerOption = Path("."),
    as_json: JsonOption = False,
) -> None:
    """Accept any ledger in a site's next reply, even an older or a different one.

    Use it only after the site accepted the loss (`wardround-site ledger accept-loss`), or if a different hospital now
    has this name: telephone first. It is not needed if the site still has its newest copy.
    """
    from dataclasses import asdict

    from wardround_server.sites import decisions
    from wardround_server.sites.ledger_heads import LedgerHeads

    _registry(server)
    decisions.require_enrolled(server, name)
    require_person(by)
    seen = LedgerHeads(server).known().get(name)
    last = f"entry {seen.entries}, hash {seen.sha256[:12]}…" if seen and seen.entries else "none"
    _confirm(f"{name}: ledger last seen: {last}. Accept any ledger in its next reply?", yes or as_json)
    before = decisions.accept_ledger(server, name, by)
    if as_json:
        print(json.dumps({"name": name, "was": asdict(before)}))
    else:
        print(f"{name}: its next reply is accepted with any ledger; entry {before.entries} need not be in it")


def _end(
    server: Path, name: str, how: Literal["removed", "revoked"], question: str, yes: bool, by: str | None, as_json: bool
) -> None:
    from wardround_server.sites.decisions import end_site

    _registry(server)
    _confirm(question, yes or as_json)
    require_person(by)
    site = end_site(server, name, how, by)
    _say(site, f"is {how}", as_json)


def _registry(server: Path) -> Registry:
    from wardround_server.operations.config import load_server_config
    from wardround_server.sites.registry import Registry

    load_server_config(server)  # fails in any other folder, so that no registry is created there
    return Registry(server)


def _confirm(question: str, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError(f"{question} To confirm, run the command again with --yes")
    if not typer.confirm(question):
        raise UsageError("nothing was changed")


def _say(site: EnrolledSite, what: str, as_json: bool) -> None:
    if as_json:
        print(json.dumps(site.to_json()))
    else:
        print(f"{site.name} {what}, key {site.fingerprint[:12]}…")
