"""Serves a console until it is stopped, and its metrics on a port of their own."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from wardround.errors import WardroundError
from wardround.operations.ports import wait_for_port
from wardround.web.limited_log import LimitedLines

START_LIMIT_S, STOP_LIMIT_S, LOOK_S = 20.0, 10.0, 0.05
HEAD_LIMIT_S = 15.0  # from the first byte of a connection to the end of a request's head
STALL_LIMIT_S = 5.0  # in which a browser must have read some of an answer that waits for it
UVICORN = "uvicorn.error"  # its logger, also of what is no error
MOST_CONNECTIONS, IDLE_S, HEADER_BYTES = 128, 10, 16 * 1024


@dataclass(frozen=True, kw_only=True)
class Listener:
    """An application and where it listens."""

    app: ASGIApp
    address: str
    port: int


def serve(listeners: Sequence[Listener], stopped: threading.Event, ready: Callable[[], None]) -> None:
    """Serve until `stopped` is set; `ready` is called once all of them listen.

    Raises:
        WardroundError: A port is taken, or a listener ended by itself.
    """
    for one in listeners:
        wait_for_port(one.address, one.port, "choose another one with --port or in [console]", stopped)
    servers, limited = [_Serving(one) for one in listeners], LimitedLines()
    logging.getLogger(UVICORN).addFilter(limited)
    try:
        for serving in servers:
            serving.start()
        ready()
        while not stopped.wait(LOOK_S * 4):
            if not all(serving.alive() for serving in servers):
                raise WardroundError("the console stopped by itself; see logs/console.log")
    finally:
        for serving in servers:
            serving.stop()
        logging.getLogger(UVICORN).removeFilter(limited)


class _Bounded(H11Protocol):
    """A connection that ends if a request's head takes too long, or if nobody reads the answer.

    Otherwise a few slow peers could use up all connections. Such a connection is aborted, because closing it would wait
    until the answer has been read.
    """

    _timer: asyncio.TimerHandle | None = None
    _looker: asyncio.TimerHandle | None = None
    _unsent = 0  # bytes of answers that waited at the last look

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        super().connection_made(transport)
        self._watch()
        self._looker = self.loop.call_later(STALL_LIMIT_S, self._look)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        for timer in (self._timer, self._looker):
            if timer is not None:
                timer.cancel()

    def _look(self) -> None:
        unsent = self.transport.get_write_buffer_size()
        if self._unsent and unsent >= self._unsent:
            self.transport.abort()
            return
        self._unsent = unsent
        self._looker = self.loop.call_later(STALL_LIMIT_S, self._look)

    def _waits(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _watch(self) -> None:
        if not self._waits() and self._timer is not None:
            self._timer.cancel()
            self._timer = None
        elif self._waits() and self._timer is None:
            self._timer = self.loop.call_later(HEAD_LIMIT_S, self._give_up)

    def _give_up(self) -> None:
        self._timer = None
        if self._waits():
            self.transport.abort()


class _Serving:
    def __init__(self, listener: Listener) -> None:
        config = uvicorn.Config(
            listener.app, host=listener.address, port=listener.port, http=_Bounded, ws="none", lifespan="off",
            loop="asyncio", log_config=None, access_log=False, server_header=False, proxy_headers=False,
            limit_concurrency=MOST_CONNECTIONS, timeout_keep_alive=IDLE_S, h11_max_incomplete_event_size=HEADER_BYTES,
            timeout_graceful_shutdown=int(STOP_LIMIT_S / 2),
        )  # fmt: skip
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, name=f"console-{listener.port}", daemon=True)

    def start(self) -> None:
        self._thread.start()
        ends = time.monotonic() + START_LIMIT_S
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > ends:
                raise WardroundError("the console could not start; see logs/console.log")
            time.sleep(LOOK_S)

    def alive(self) -> bool:
        return self._thread.is_alive()

    def stop(self) -> None:
        self._server.should_exit = True
        if self._thread.ident is not None:
            self._thread.join(STOP_LIMIT_S)
