"""`/metrics` for Prometheus, on a port of its own of 127.0.0.1: numbers about the program, and none about a patient.

It needs no sign-in, so it is never served on the console's port, which a proxy may open to other machines. A part that
cannot be read is left out and named in `wardround_unreadable`; the others are still served.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from wardround.errors import WardroundError
from wardround.operations.health import asked
from wardround.web.audit_entries import entries_of
from wardround.web.config import LOOPBACK_NAMES
from wardround.web.limited_log import LimitedLog

FORMAT = "text/plain; version=0.0.4; charset=utf-8"
LIMIT_S, ANSWER_TIMEOUT_S = 20.0, 2.0
MOST_SERIES, OTHER = 50, "other"  # values of one label; what they add up to beyond that

Part = Callable[[], Iterable[Metric]]


class Parts(Collector):
    """The metrics of several parts, each read anew for every request."""

    def __init__(self, parts: dict[str, Part]) -> None:
        self._parts, self._log = parts, LimitedLog(logging.getLogger(__name__))

    def collect(self) -> Iterator[Metric]:
        unreadable = GaugeMetricFamily("wardround_unreadable", "1 if a part could not be read.", labels=["part"])
        for name, read in self._parts.items():
            try:
                found = list(read())
            except (WardroundError, OSError, ValueError, KeyError) as error:
                self._log.warning("metrics: %s cannot be read: %s", name, error)
                found = []
                unreadable.add_metric([name], 1)
            else:
                unreadable.add_metric([name], 0)
            yield from found
        yield unreadable


def daemon_metrics(folder: Path) -> Iterator[Metric]:
    """Yield whether the daemon is serving, and each of its checks."""
    serving = GaugeMetricFamily("wardround_serving", "1 if the daemon is running and no check found a fault.")
    checks = GaugeMetricFamily("wardround_check", "1 good, 0.5 with a note, 0 with a fault.", labels=["check"])
    try:
        answer = asked(folder, ANSWER_TIMEOUT_S)
    except WardroundError:
        serving.add_metric([], 0)
    else:
        serving.add_metric([], int(answer.serving))
        for check in answer.checks[:MOST_SERIES]:
            checks.add_metric([check.name], {"ok": 1.0, "note": 0.5}.get(check.state, 0.0))
    yield serving
    yield checks


def most_frequent(counts: Mapping[str, int]) -> dict[str, int]:
    """Return the `MOST_SERIES` largest counts and, as `other`, the sum of the rest.

    What peers send must not make series without end: a monitoring program keeps each of them for weeks.
    """
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    rest = sum(count for _, count in ranked[MOST_SERIES:])
    return dict(ranked[:MOST_SERIES]) | ({OTHER: rest} if rest else {})


def audit_metrics(folder: Path) -> Iterator[Metric]:
    """Yield how many entries the log has; if it is damaged, it is named in `wardround_unreadable`."""
    yield GaugeMetricFamily(
        "wardround_audit_entries", "Entries of the audit log, verified.", value=len(entries_of(folder))
    )


def metrics_app(parts: dict[str, Part], port: int) -> ASGIApp:
    """Return the application that serves `/metrics` and nothing else, to this machine and under its own names only."""
    registry, hosts = CollectorRegistry(), {f"{name}:{port}" for name in LOOPBACK_NAMES}
    registry.register(Parts(parts))
    reading: asyncio.Future[bytes] | None = None

    def read() -> asyncio.Future[bytes]:
        """Return the reading under way, or begin one: a thread that takes too long cannot be ended, so there is one."""
        nonlocal reading
        if reading is None or reading.done():
            reading = asyncio.ensure_future(asyncio.to_thread(generate_latest, registry))
        return reading

    async def answer(scope: Scope) -> Response:
        headers = Headers(scope=scope)
        if (scope.get("client") or ("",))[0] not in ("127.0.0.1", "::1") or headers.getlist("host") not in (
            [host] for host in hosts
        ):
            return PlainTextResponse("only for this machine\n", 421)
        if scope["path"] != "/metrics" or scope["method"] != "GET":
            return PlainTextResponse("only GET /metrics\n", 404)
        try:
            content = await asyncio.wait_for(asyncio.shield(read()), LIMIT_S)
        except TimeoutError:
            return PlainTextResponse("the folder could not be read in time\n", 503)
        return Response(content, headers={"content-type": FORMAT, "cache-control": "no-store"})

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await (await answer(scope))(scope, receive, send)

    return app
