"""`wardround-server start`, `submit`, `runs`, `show`, `stop`, `resume`: the server's daemon and its runs.

`submit`, `stop` and `resume` write into the server's folder. The daemon acts on it, after its next start if it is not
running now.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wardround.cli.app import print_table, require_person
from wardround.cli.options import ByForAuditOption, JsonOption, JsonStartOption, ServerOption
from wardround.printable import escaped

if TYPE_CHECKING:
    from wardround_server.runs.folder import RunFolder

app = typer.Typer(rich_markup_mode=None)
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="The run's id, as `runs` shows it.")]
LOOK_S = 1.0
STOP_LIMIT_S = 15.0


@app.command(epilog="Example: wardround-server start --server federation")
def start(
    server: ServerOption = Path("."),
    as_json: JsonStartOption = False,
) -> None:
    """Serve the federation until SIGTERM or Ctrl-C: admit sites, propose studies, train, aggregate."""
    import threading

    from wardround.processes.supervisor import stop_on_signals
    from wardround_server.flower.superlink import Ports, SuperLink
    from wardround_server.operations.config import load_server_config
    from wardround_server.operations.daemon import run_daemon
    from wardround_server.sites.registry import Registry

    folder = server.resolve()
    settings = load_server_config(folder).server
    registry, stopped = Registry(folder), threading.Event()
    ports = Ports(listen=settings.listen, fleet=settings.fleet_port, control=settings.control_port)

    def ready() -> None:
        started = {"server": settings.name, "port": settings.fleet_port, "process": os.getpid()}
        print(json.dumps(started) if as_json else f"{settings.name} listens on port {settings.fleet_port}", flush=True)

    stop_on_signals(stopped)
    run_daemon(
        SuperLink(folder=folder, ports=ports),
        lambda: {site.name: site.public_key for site in registry.sites()},
        stopped,
        ready,
    )


@app.command(epilog="Example: wardround-server submit studies/lidc.toml --wait --server federation")
def submit(
    study: Annotated[Path, typer.Argument(metavar="STUDY", help="The study's TOML file.")],
    wait: Annotated[bool, typer.Option("--wait", help="Wait until the run is finished or stopped.")] = False,
    by: ByForAuditOption = None,
    server: ServerOption = Path("."),
    as_json: JsonOption = False,
) -> None:
    """Propose a study to every site. Training starts when min_sites of them have approved it; this may take days."""
    from wardround.study.load import load_study
    from wardround_server.operations.config import load_server_config
    from wardround_server.runs.decisions import submit_run

    require_person(by)
    load_server_config(server)
    run = submit_run(server, load_study(study), str(study), by)
    while wait and run.state() in ("proposed", "training"):
        time.sleep(LOOK_S)
    _say(run, as_json)


@app.command(epilog="Example: wardround-server runs --server federation")
def runs(server: ServerOption = Path("."), as_json: JsonOption = False) -> None:
    """List all runs: state, round, and which sites approved."""
    from wardround_server.operations.config import load_server_config
    from wardround_server.runs.folder import runs as all_runs
    from wardround_server.runs.summary import facts_of

    load_server_config(server)
    found = [facts_of(run) for run in all_runs(server)]
    if as_json:
        print(json.dumps(found))
        return
    rows = [(one["run"], one["state"], f"{one['round']}/{one['rounds']}", ", ".join(one["approved"])) for one in found]
    print_table(("run", "state", "round", "approved by"), rows or [("none", "", "", "")])


@app.command(epilog="Example: wardround-server show lidc-20261124-220105-e0b46f --server federation")
def show(run: RunArgument, server: ServerOption = Path("."), as_json: JsonOption = False) -> None:
    """Show one run: each site's status, the current round, and which sites missed the last rounds and why."""
    from wardround_server.runs.folder import find_run

    _say(find_run(server, run), as_json)


@app.command(epilog="Example: wardround-server stop lidc-20261124-220105-e0b46f --server federation")
def stop(
    run: RunArgument, by: ByForAuditOption = None, server: ServerOption = Path("."), as_json: JsonOption = False
) -> None:
    """Stop a run within seconds, even during a round. Its checkpoints are kept; `resume` continues from them."""
    from wardround_server.runs.decisions import stop_run
    from wardround_server.runs.folder import find_run

    require_person(by)
    found = find_run(server, run)
    stop_run(found, by)
    ends = time.monotonic() + STOP_LIMIT_S
    while found.at_work() and time.monotonic() < ends:
        time.sleep(LOOK_S / 4)
    if found.at_work():
        print(
            f"{run}: a process is still working on it after {STOP_LIMIT_S:.0f} s; see `wardround-server logs`",
            file=sys.stderr,
        )
    _say(found, as_json)


@app.command(epilog="Example: wardround-server resume lidc-20261124-220105-e0b46f --server federation")
def resume(
    run: RunArgument, by: ByForAuditOption = None, server: ServerOption = Path("."), as_json: JsonOption = False
) -> None:
    """Continue a stopped run from its last checkpoint. A run that failed is retried automatically."""
    from wardround_server.runs.decisions import resume_run
    from wardround_server.runs.folder import find_run

    require_person(by)
    found = find_run(server, run)
    resume_run(found, by)
    _say(found, as_json)


def _say(run: RunFolder, as_json: bool) -> None:
    from wardround_server.runs.summary import facts_of, headlines, round_rows, site_rows

    facts = facts_of(run)
    if as_json:
        print(json.dumps(facts))
        return
    for line in headlines(facts):
        print(escaped(line))
    columns = ("site", "status", "since", "software", "counted")
    print_table(columns, site_rows(facts) or [("no site is enrolled", "", "", "", "")])
    if rows := round_rows(facts):
        print_table(("round", "site", "reply", "after", "size"), rows)
