"""The server's daemon: it keeps SuperLink and executor running and advances the runs, until SIGTERM.

All of its state is in the server's folder (sites, runs and the sites' replies), so that interrupted work continues at
the next start. A run is proposed until enough sites have approved it, then trained until it has a result. A phase that
ended without success is tried again after a growing pause. The Flower run that carried a phase is not kept.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version

from wardround.errors import WardroundError
from wardround.operations.health import HealthService
from wardround.operations.health_checks import Check, fault, ok
from wardround.operations.logs import at, log_to
from wardround.operations.ports import PORT_LIMIT_S, wait_for_port
from wardround.processes.supervisor import Child, sole, supervise
from wardround.records.audit_events import Started, Stopped
from wardround.records.audit_log import AUDIT_FILE, AuditLog
from wardround_server.flower.superlink import Ports, SuperLink
from wardround_server.operations.config import load_server_config
from wardround_server.operations.health import probes_of
from wardround_server.operations.paths import SERVER_LOG
from wardround_server.runs.folder import RunFolder, State, runs
from wardround_server.sites.certificates import LOOPBACK
from wardround_server.sites.flower_nodes import keep_nodes
from wardround_server.tracking.sink import tracking_child

LOOK_S = 1.0
ASK_EVERY_S = 60.0  # longest pause between proposals: a decision may take days, but somebody may also be waiting for it
SHORTEST_PAUSE_S, LONGEST_PAUSE_S = 15.0, 300.0  # the shortest exceeds the time in which a phase takes its run's lock
FAILED_PAUSE_S = 5.0

log = logging.getLogger(__name__)

Sites = Callable[[], Mapping[str, str]]


def run_daemon(superlink: SuperLink, sites: Sites, stopped: threading.Event, ready: Callable[[], None]) -> None:
    """Serve the federation until `stopped` is set; all child processes end before this returns.

    `sites` returns the sites that may take part now (name -> public key). `ready` is called once, when the work begins.
    Raises `WardroundError` if another daemon already works in the folder, or a port is taken.
    """
    with sole(superlink.folder):
        wait_for_ports(superlink.ports, stopped)
        log_to(superlink.folder / SERVER_LOG)
        (child, executor), audit = superlink.children(), AuditLog(superlink.folder / AUDIT_FILE)
        tracking = tracking_child(superlink.folder, load_server_config(superlink.folder))
        coordinator = Coordinator(superlink=superlink, sites=sites, stopped=stopped, is_up=lambda: child.is_up)
        health = HealthService(probes_of(superlink.folder, lambda: serving(child)), superlink.folder)
        audit.append(Started(program="wardround-server", version=version("wardround")))
        health.start()
        threading.Thread(target=coordinator.work, daemon=True).start()
        try:
            ready()
            supervise([child, executor, *tracking], stopped, ending_with(child, executor))
        finally:
            health.stop()
            audit.append(Stopped(program="wardround-server", code="asked" if stopped.is_set() else "failed"))


def wait_for_ports(ports: Ports, stopped: threading.Event, limit_s: float = PORT_LIMIT_S) -> None:
    """Wait until both ports are free, which takes a moment after a server was killed.

    Raises:
        WardroundError: Another program uses a port, or a port or its address cannot be used on this machine.
    """
    for address, port in ((ports.listen, ports.fleet), (LOOPBACK, ports.control)):
        wait_for_port(address, port, "choose another port in server.toml", stopped, limit_s)


def ending_with(superlink: Child, executor: Child) -> Callable[[], None]:
    """Return a function that kills the executor if the SuperLink was restarted since the last call.

    A phase cannot continue with another SuperLink than the one with which it began, and would block the next phase of
    its run.
    """
    known = superlink.restarts

    def each() -> None:
        nonlocal known
        if superlink.restarts != known:
            known = superlink.restarts
            executor.kill()

    return each


def serving(superlink: Child) -> Check:
    """Check whether the SuperLink is up, so that hospitals can connect."""
    if superlink.is_up:
        return ok("superlink", f"running as process {superlink.pid}")
    return fault("superlink", "not running", "see logs/server.log; it is restarted automatically")


@dataclass(kw_only=True)
class Pursuit:
    """The coordinator's memory of one run: its last state and finished rounds, and when the next phase may be started.

    `not_before` is in seconds of the monotonic clock.
    """

    state: State
    rounds: int
    not_before: float = 0.0
    pause_s: float = 0.0


@dataclass(kw_only=True)
class Coordinator:
    """Advances the registration of keys and the runs in a polling loop. Failed steps are logged and tried again."""

    superlink: SuperLink
    sites: Sites
    stopped: threading.Event
    is_up: Callable[[], bool]
    _pursuits: dict[str, Pursuit] = field(default_factory=dict)
    _ordered: dict[str, str] = field(default_factory=dict)  # run id -> Flower run of a phase that has not begun
    _known: Mapping[str, str] | None = None
    _keys_not_before: float = 0.0

    def work(self) -> None:
        """Poll until stopped. While the SuperLink is not up, nothing is done because no call could succeed."""
        while not self.stopped.wait(LOOK_S):
            if self.is_up():
                self._attempt(self._keep_keys)
                for run in runs(self.superlink.folder):
                    with at(run=run.run_id):
                        self._attempt(partial(self._bring_forward, run))

    def _attempt(self, step: Callable[[], None]) -> None:
        try:
            step()
        except WardroundError as error:
            log.warning("%s", error)
            self.stopped.wait(FAILED_PAUSE_S)
        except Exception:
            log.exception("an error in the coordinator; it continues")
            self.stopped.wait(FAILED_PAUSE_S)

    def _keep_keys(self) -> None:
        """Make Flower's list of keys match the registry: add new keys, exclude all others, also a name's former key."""
        sites = dict(self.sites())
        if sites == self._known or time.monotonic() < self._keys_not_before:
            return
        self._keys_not_before = time.monotonic() + SHORTEST_PAUSE_S  # after a failure, the runs continue meanwhile
        keep_nodes(self.superlink, sites)
        self._known = sites

    def _bring_forward(self, run: RunFolder) -> None:
        state = run.state()
        if state not in ("proposed", "training"):
            self._pursuits.pop(run.run_id, None)  # so that a resumed run starts without a pause
            return
        if run.at_work():
            self._ordered.pop(run.run_id, None)  # its phase has begun
            return
        pursuit, rounds = self._pursuits.get(run.run_id), run.rounds_done()
        if pursuit is None or (pursuit.state, pursuit.rounds) != (state, rounds):  # after progress there is no pause
            pursuit = self._pursuits[run.run_id] = Pursuit(state=state, rounds=rounds)
        if time.monotonic() < pursuit.not_before:
            return
        phase = "propose" if state == "proposed" else "train"
        self._end_last(run.run_id)
        flower_id = self._ordered[run.run_id] = self.superlink.start_phase(run.run_id, phase)
        log.info("phase %s starts (Flower's run %s)", phase, flower_id)
        longest_s = ASK_EVERY_S if state == "proposed" else LONGEST_PAUSE_S
        pursuit.pause_s = min(max(2 * pursuit.pause_s, SHORTEST_PAUSE_S), longest_s)
        pursuit.not_before = time.monotonic() + pursuit.pause_s

    def _end_last(self, run_id: str) -> None:
        """Stop the Flower run of a previous phase that did not begin.

        If the machine is too busy to start it within Flower's 30 s, Flower would start it again and again in parallel
        with later phases and add to the load.
        """
        with suppress(WardroundError):
            if last := self._ordered.pop(run_id, None):
                self.superlink.stop_phase(last)
