"""Serving a console over real sockets: a peer that does not read its answers does not keep a connection."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from wardround.web import server
from wardround.web.limited_log import LINES, WITHIN_S, LimitedLines
from wardround.web.server import Listener, serve


async def large(scope, receive, send) -> None:
    """An application whose every answer is larger than the buffers of a connection."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"8000000")]})
    await send({"type": "http.response.body", "body": b"x" * 8_000_000})


@contextmanager
def served() -> Iterator[int]:
    """The application behind a port of this machine, until the end of the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    stopped, ready = threading.Event(), threading.Event()
    thread = threading.Thread(
        target=serve, args=([Listener(app=large, address="127.0.0.1", port=port)], stopped, ready.set)
    )
    thread.start()
    try:
        assert ready.wait(20)
        yield port
    finally:
        stopped.set()
        thread.join(30)


def test_a_peer_that_reads_nothing_loses_its_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "STALL_LIMIT_S", 0.3)
    with served() as port, socket.create_connection(("127.0.0.1", port), 5) as peer:
        peer.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        time.sleep(2.0)
        read = 0
        with pytest.raises(ConnectionError):
            while chunk := peer.recv(1 << 20):
                read += len(chunk)
            raise ConnectionError("closed before all of the answer came") if read < 8_000_000 else AssertionError


def test_malformed_requests_do_not_fill_the_log(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = logging.getLogger("uvicorn.error")  # a program that ran in this process before may have set it up
    monkeypatch.setattr(log, "disabled", False)
    monkeypatch.setattr(log, "propagate", False)
    monkeypatch.setattr(log, "handlers", [caplog.handler])
    caplog.set_level(logging.WARNING, log.name)
    with served() as port:
        for _ in range(LINES + 20):
            with socket.create_connection(("127.0.0.1", port), 5) as peer:
                peer.sendall(b"\0garbage\r\n\r\n")
                peer.recv(1000)
    assert len([one for one in caplog.records if one.levelno >= logging.WARNING]) == LINES


def test_the_next_line_says_how_many_were_left_out() -> None:
    now = [0.0]
    limited = LimitedLines(clock=lambda: now[0])
    lines = [logging.LogRecord("x", logging.WARNING, "", 0, "bad %s", ("request",), None) for _ in range(LINES + 4)]
    assert [limited.filter(one) for one in lines] == [True] * LINES + [False] * 4
    assert limited.filter(logging.LogRecord("x", logging.INFO, "", 0, "started", (), None))
    now[0] = WITHIN_S
    assert limited.filter(lines[-1]) and lines[-1].getMessage() == "bad request (4 more were not logged)"
