"""Serving a console over real sockets: a peer that does not read its answers does not keep a connection."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from wardround.web import server
from wardround.web.server import Listener, serve


async def large(scope, receive, send) -> None:
    """An application whose every answer is larger than the buffers of a connection."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"8000000")]})
    await send({"type": "http.response.body", "body": b"x" * 8_000_000})


def test_a_peer_that_reads_nothing_loses_its_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "STALL_LIMIT_S", 0.3)
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
        with socket.create_connection(("127.0.0.1", port), 5) as peer:
            peer.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            time.sleep(2.0)
            read = 0
            with pytest.raises(ConnectionError):
                while chunk := peer.recv(1 << 20):
                    read += len(chunk)
                raise ConnectionError("closed before all of the answer came") if read < 8_000_000 else AssertionError
    finally:
        stopped.set()
        thread.join(30)
