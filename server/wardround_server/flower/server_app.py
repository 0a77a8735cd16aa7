"""The installed ServerApp, which the bundle of a run names. It executes one phase of one run and exits.

The server folder comes from the environment that the server's supervisor sets. The run config contains only the run's
id and the phase, because it is sent to every site. Nodes are identified by Flower's list of registered keys.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Collection, Mapping
from pathlib import Path

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

from wardround.errors import RoundError, UsageError, WireError
from wardround.operations.logs import at, log_to
from wardround.study.load import Study
from wardround.wire.packets import PROTOCOL_VERSION, is_code
from wardround.wire.proposal import pack_proposal, unpack_state
from wardround.wire.protocol import PROPOSE
from wardround.wire.versions import older_side, software_in
from wardround_server.flower.exchange import FlowerExchange, Polling, pull_reply, transport_code
from wardround_server.flower.superlink import DAEMON, SERVER_FOLDER
from wardround_server.operations.paths import LOGS
from wardround_server.rounds.evaluation import SitesExchange
from wardround_server.runs.attendance import Attended
from wardround_server.runs.folder import RunFolder, find_run
from wardround_server.runs.phases import STOPPED, ask, train
from wardround_server.sites import software as site_software
from wardround_server.sites.certificates import key_pem
from wardround_server.sites.registry import Registry

ONLINE = "online"
LOOK_S = 0.5
RUN_LOGS_KEPT = 2

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Execute the phase that the run config names."""
    end_with_daemon(int(os.environ[DAEMON]))
    folder = Path(os.environ[SERVER_FOLDER])
    run = find_run(folder, str(context.run_config["run"]))
    federation = FlowerFederation(grid, run, stop_watch(run))
    phase = context.run_config["phase"]
    # The phase needs a log file because Flower discards the output of this process. Flower's messages are left out.
    log_to(folder / LOGS / f"{run.run_id}.log", kept=RUN_LOGS_KEPT, names=("wardround", "wardround_server"))
    with at(run=run.run_id):
        if phase == "propose":
            ask(run, federation)
        elif phase == "train":
            train(run, federation)
        else:
            raise UsageError("phase: must be propose or train")


class FlowerFederation:
    """The sites over Flower's grid; implements `runs.phases.Federation`."""

    def __init__(self, grid: Grid, run: RunFolder, stopped: threading.Event) -> None:
        """Once `stopped` is set, every wait ends with `RoundError`."""
        self._grid, self._stopped = grid, stopped
        self._run, self._registry = run, Registry(run.server)

    def online(self) -> dict[str, int]:
        """Return name -> node id of the enrolled sites that are connected.

        A node belongs to a site if it signs with the key that the registry has for that name now, regardless of the
        name in Flower's own list.
        """
        names = {key_pem(site.public_key): site.name for site in self._registry.sites()}
        nodes = [node for node in self._grid.get_nodes() if node.status == ONLINE and node.public_key in names]
        return dict(sorted((names[node.public_key], node.node_id) for node in nodes))

    def exchange(self, directory: Mapping[str, int | None]) -> SitesExchange:
        """Return the exchange with these sites, which records attendance."""
        exchange = FlowerExchange(self._grid, directory, Polling(), self._stopped)
        return Attended(exchange, self._run, directory, self.online)

    def propose(self, study: Study, sites: Collection[str], limit_s: float) -> dict[str, str]:
        """Propose a study to those of `sites` that are connected; return name -> the site's decision or a code."""
        record = {name: ConfigRecord(dict(fields)) for name, fields in pack_proposal(study).items()}
        asked: dict[str, str] = {}
        for site, node in ((site, node) for site, node in self.online().items() if site in sites):
            message = Message(RecordDict(dict(record)), dst_node_id=node, message_type=PROPOSE, ttl=limit_s)
            for message_id in self._grid.push_messages([message]):
                asked[message_id] = site
        words = dict.fromkeys(asked.values(), "late")
        ends = time.monotonic() + limit_s
        while asked and time.monotonic() < ends:
            for message_id, site in list(asked.items()):
                try:
                    reply = pull_reply(self._grid, message_id)
                    word = None if reply is None else _decision_or_code(reply, study)
                    if (
                        reply is not None
                        and reply.has_content()
                        and (software := software_in(reply.content)) is not None
                    ):
                        site_software.keep(self._run.server, site, software)
                except WireError as error:
                    word = f"invalid:{error.code}"
                if word is not None:
                    words[site] = word
                    del asked[message_id]
            if self._stopped.wait(LOOK_S):
                raise RoundError(STOPPED)
        return words


def end_with_daemon(daemon: int) -> None:
    """End this process within a second of the daemon's end, as if it had been killed; its run continues later.

    Flower's executor starts this process and does not end it. It would wait for a SuperLink that is gone, for as long
    as Flower tries to reach it, while the next start of the daemon continues the run.
    """

    def look() -> None:
        while Path(f"/proc/{daemon}").exists():
            time.sleep(LOOK_S)
        os._exit(1)

    threading.Thread(target=look, name="daemon", daemon=True).start()


def stop_watch(run: RunFolder) -> threading.Event:
    """Return an event that is set as soon as the operator stops the run.

    A thread watches the run's folder, so that waiting for a site does not delay the stop.
    """
    stopped = threading.Event()

    def look() -> None:
        while not run.is_stopped:
            time.sleep(LOOK_S)
        stopped.set()

    threading.Thread(target=look, name="stopped", daemon=True).start()
    return stopped


def _decision_or_code(reply: Message, study: Study) -> str:
    """Return a site's decision on a study, or a code if it sent none. Free text from a site is never returned."""
    if (code := transport_code("asked", reply)) is not None:
        return code
    try:
        if set(reply.content) == {"header", "tensors"}:
            header = reply.content["header"]
            sent = header.get("code")
            if sent == "wire-protocol":  # older versions do not name the side that must upgrade
                older = older_side(site_protocol=header.get("protocol"), server_protocol=PROTOCOL_VERSION)
                sent = f"version-{older}-older"
            return f"refused:{sent}" if isinstance(sent, str) and is_code(sent) else "invalid:code"
        return unpack_state(reply.content, study.sha256())
    except WireError as error:
        return f"invalid:{error.code}"
