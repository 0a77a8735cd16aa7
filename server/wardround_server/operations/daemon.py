"""The server's daemon: SuperLink and executor kept running, and a coordinator that brings runs forward, until SIGTERM.

All it knows lies in the folder (sites, runs and what sites said), so that whatever was in flight when it died goes on
at its next start: a run is asked about until enough sites approved, then trained until it has a result. A phase that
ended without success is tried again after a pause that grows. The Flower run that carries a phase is forgotten with it.
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
from wardround.processes.supervisor import Child, sole, supervise
from wardround.records.audit_events import Started, Stopped
from wardround.records.audit_log import AUDIT_FILE, AuditLog
from wardround_server.flower.superlink import SuperLink
from wardround_server.operations.health import looks_of
from wardround_server.operations.paths import SERVER_LOG
from wardround_server.runs.folder import RunFolder, State, runs
from wardround_server.sites.flower_nodes import keep_nodes

LOOK_S = 1.0
ASK_EVERY_S = 60.0  # at the longest: a hospital takes days to decide; but one that has somebody waiting, a minute
SHORTEST_PAUSE_S, LONGEST_PAUSE_S = 15.0, 300.0  # the shortest is beyond what a phase takes to hold its run's lock
FAILED_PAUSE_S = 5.0

log = logging.getLogger(__name__)

Sites = Callable[[], Mapping[str, str]]


def run_daemon(superlink: SuperLink, sites: Sites, stopped: threading.Event, ready: Callable[[], None]) -> None:
    """Serve the federation until `stopped` is set; nothing runs afterwards.

    `sites` gives the names of the sites that may take part now, with each one's public key. `ready` is called once, as
    the work begins. Raises `WardroundError` where a daemon is at work in the folder already.
    """
    with sole(superlink.folder):
        log_to(superlink.folder / SERVER_LOG)
        (child, executor), audit = superlink.children(), AuditLog(superlink.folder / AUDIT_FILE)
        coordinator = Coordinator(superlink=superlink, sites=sites, stopped=stopped, is_up=lambda: child.is_up)
        health = HealthService(looks_of(superlink.folder, lambda: serving(child)), superlink.folder)
        audit.append(Started(program="wardround-server", version=version("wardround")))
        health.start()
        threading.Thread(target=coordinator.work, daemon=True).start()
        try:
            ready()
            supervise([child, executor], stopped, ending_with(child, executor))
        finally:
            health.stop()
            audit.append(Stopped(program="wardround-server", code="asked" if stopped.is_set() else "failed"))


def ending_with(superlink: Child, executor: Child) -> Callable[[], None]:
    """What kills the executor once the SuperLink has died: a phase cannot go on at another SuperLink than the one it
    began at, and would keep its run from the next phase.
    """
    known = superlink.restarts

    def each() -> None:
        nonlocal known
        if superlink.restarts != known:
            known = superlink.restarts
            executor.kill()

    return each


def serving(superlink: Child) -> Check:
    """Whether hospitals can connect."""
    if superlink.is_up:
        return ok("superlink", f"running as process {superlink.pid}")
    return fault("superlink", "not running", "see logs/server.log; it is restarted automatically")


@dataclass(kw_only=True)
class Pursuit:
    """What the coordinator remembers about one run: what it was at, the rounds it had done, and when the next phase may
    be ordered.
    """

    state: State
    rounds: int
    not_before: float = 0.0
    pause_s: float = 0.0


@dataclass(kw_only=True)
class Coordinator:
    """Brings keys and runs forward, one look after another. What fails is logged and tried again."""

    superlink: SuperLink
    sites: Sites
    stopped: threading.Event
    is_up: Callable[[], bool]
    _pursuits: dict[str, Pursuit] = field(default_factory=dict)
    _ordered: dict[str, str] = field(default_factory=dict)  # run -> Flower's run of a phase that has not begun
    _known: Mapping[str, str] | None = None
    _keys_not_before: float = 0.0

    def work(self) -> None:
        """Look until stopped. While the SuperLink is not up there is nobody to ask."""
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
        """Flower's list of keys follows the registry's: new keys in, all others out, also a name's former key."""
        sites = dict(self.sites())
        if sites == self._known or time.monotonic() < self._keys_not_before:
            return
        self._keys_not_before = time.monotonic() + SHORTEST_PAUSE_S  # where it fails, the runs go on meanwhile
        keep_nodes(self.superlink, sites)
        self._known = sites

    def _bring_forward(self, run: RunFolder) -> None:
        state = run.state()
        if state not in ("proposed", "training"):
            self._pursuits.pop(run.run_id, None)  # whoever resumes it waits for no pause
            return
        if run.at_work():
            self._ordered.pop(run.run_id, None)  # it began
            return
        pursuit, rounds = self._pursuits.get(run.run_id), run.rounds_done()
        if pursuit is None or (pursuit.state, pursuit.rounds) != (state, rounds):  # what moves is not kept waiting
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
        """End the Flower run of a last phase that did not begin: on a machine too busy to start it within Flower's 30 s
        it would be started again and again, beside the next ones, and make it busier still.
        """
        with suppress(WardroundError):
            if last := self._ordered.pop(run_id, None):
                self.superlink.stop_phase(last)
