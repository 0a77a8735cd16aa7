"""Reports a daemon's health to monitoring through gRPC's own health protocol (grpc.health.v1) on loopback.

SERVING means that every named check recently found no fault, and not just that a process is running. Each check has a
time limit. A check that hangs counts as a fault and is not started again until it returns, so a hung disk occupies one
thread only. The results are also written to `health.json`, with the port of the service; only its owner can read that
file. Each check is also a gRPC service: `grpc_health_probe -service=budget`.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from wardround.errors import WardroundError
from wardround.operations.health_checks import Check, fault
from wardround.storage.atomic import write_private

HEALTH_FILE = "health.json"
OVERALL = ""  # the protocol's service name for a whole server
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One health check.

    `run` returns a `Check`. An exception counts as a fault. Its text is shown only if it is a `WardroundError`,
    otherwise its type, because the text of another exception may contain anything. `todo` states what to do about a
    fault.
    """

    name: str
    run: Callable[[], Check]
    todo: str
    limit_s: float = 10.0


class Watch:
    """Runs the checks repeatedly, each in its own thread, and never runs the same check twice at a time."""

    def __init__(self, probes: Sequence[Probe]) -> None:
        self._probes = tuple(probes)
        self._running: dict[str, threading.Thread] = {}

    def findings(self) -> list[Check]:
        """Run every check and return the results in order; returns after the longest time limit at most."""
        found: dict[str, Check] = {}
        for probe in self._probes:
            thread = self._running.get(probe.name)
            if thread is None or not thread.is_alive():
                thread = threading.Thread(target=_into, args=(found, probe), name=f"check-{probe.name}", daemon=True)
                self._running[probe.name] = thread
                thread.start()
        started = time.monotonic()
        for probe in self._probes:
            self._running[probe.name].join(max(0.0, started + probe.limit_s - time.monotonic()))
        late = {
            probe.name: fault(probe.name, f"no answer within {probe.limit_s:g} s", probe.todo) for probe in self._probes
        }
        return [found.get(probe.name, late[probe.name]) for probe in self._probes]


def _into(found: dict[str, Check], probe: Probe) -> None:
    try:
        check = probe.run()
    except WardroundError as error:
        check = fault(probe.name, " ".join(str(error).split()), probe.todo)
    except Exception as error:
        log.exception("check %s", probe.name)
        check = fault(probe.name, f"cannot be determined ({type(error).__name__})", probe.todo)
    found[probe.name] = check


class HealthService:
    """Serves the results on 127.0.0.1 and refreshes them in the background until `stop` is called."""

    def __init__(self, probes: Sequence[Probe], folder: Path, port: int = 0, every_s: float = 30.0) -> None:
        """Set up the service. It does not listen before `start`. `port` 0 selects a free port."""
        self._watch, self._names = Watch(probes), tuple(probe.name for probe in probes)
        self._folder, self._port, self._every_s = folder, port, every_s
        self._stopped, self._file = threading.Event(), threading.Lock()
        self._servicer = health.HealthServicer()
        options = (("grpc.so_reuseport", 0),)  # a second daemon on the same port gets an error instead of sharing it
        self._server = grpc.server(ThreadPoolExecutor(max_workers=4), options=options, maximum_concurrent_rpcs=16)
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, self._server)
        self._thread = threading.Thread(target=self._refresh, name="health", daemon=True)

    def start(self) -> int:
        """Start listening and run the first checks; nothing is SERVING until they are done. Returns the port.

        Raises:
            WardroundError: The port is taken.
        """
        for name in (OVERALL, *self._names):
            self._servicer.set(name, NOT_SERVING)
        try:
            self._port = self._server.add_insecure_port(f"127.0.0.1:{self._port}")
        except RuntimeError:
            raise WardroundError(f"health: port {self._port} of 127.0.0.1 is taken; choose another one") from None
        self._server.start()
        self._thread.start()
        return self._port

    def stop(self) -> None:
        """Stop listening. A check that hangs is left behind and ends with the process."""
        self._stopped.set()
        self._servicer.enter_graceful_shutdown()
        self._server.stop(grace=1.0).wait(5.0)
        with self._file:
            (self._folder / HEALTH_FILE).unlink(missing_ok=True)

    def _refresh(self) -> None:
        while not self._stopped.is_set():
            checks = self._watch.findings()
            for check in checks:
                self._servicer.set(check.name, NOT_SERVING if check.state == "fault" else SERVING)
            well = checks and all(check.state != "fault" for check in checks)
            self._servicer.set(OVERALL, SERVING if well else NOT_SERVING)
            with self._file:
                if not self._stopped.is_set():
                    self._write(checks)
            self._stopped.wait(self._every_s)

    def _write(self, checks: list[Check]) -> None:
        content = {"port": self._port, "at": time.time(), "checks": [check.to_json() for check in checks]}
        try:
            write_private(self._folder / HEALTH_FILE, json.dumps(content).encode())
        except WardroundError:
            log.exception("health: the findings cannot be written")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A daemon's reply about its health.

    `serving` is whether it is SERVING, `checked_at` is the time of its last checks (None if there were none), and
    `checks` are their results.
    """

    serving: bool
    checked_at: float | None
    checks: tuple[Check, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain values for `--json`."""
        return {
            "serving": self.serving,
            "looked_at": self.checked_at,
            "checks": [check.to_json() for check in self.checks],
        }


def asked(folder: Path, timeout_s: float = 5.0) -> Answer:
    """Query the daemon of this folder over gRPC. Raises a one-line `WardroundError` if there is no reply."""
    try:
        content = json.loads((folder / HEALTH_FILE).read_text(encoding="utf-8"))
        port, at = int(content["port"]), float(content["at"])
        checks = tuple(Check(**check) for check in content["checks"])
    except FileNotFoundError:
        raise WardroundError(f"{folder}: no daemon is running here, or it has not run its checks yet") from None
    except (OSError, ValueError, TypeError, KeyError):
        raise WardroundError(f"{folder / HEALTH_FILE}: cannot be read; start the daemon again") from None
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=(("grpc.enable_http_proxy", 0),)) as channel:
        try:
            request = health_pb2.HealthCheckRequest(service=OVERALL)
            reply = health_pb2_grpc.HealthStub(channel).Check(request, timeout=timeout_s)
        except grpc.RpcError as error:
            code = error.code().name if isinstance(error, grpc.Call) else "unknown"
            raise WardroundError(f"{folder}: the daemon does not answer on port {port} ({code}); start it") from None
    return Answer(serving=reply.status == SERVING, checked_at=at, checks=checks)
