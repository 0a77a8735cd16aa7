"""What a hospital's SuperNode has beyond Flower's: it notices a dead connection, and ends when a part of it ends."""

import inspect
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime

import grpc
import pytest
from flwr.client.grpc_rere_client import connection
from flwr.supercore.grpc import create_channel

from wardround_client import supernode
from wardround_server.enrolment import new_authority, new_key_pem, server_certificate

CALL = "/test.Echo/Call"


def test_flower_opens_its_connection_by_the_function_that_is_replaced():
    ours, theirs = inspect.signature(supernode.open_channel), inspect.signature(create_channel)
    assert list(ours.parameters) == list(theirs.parameters)
    inside = inspect.unwrap(connection.grpc_request_response)
    assert "create_channel" in inside.__code__.co_names and connection.create_channel is create_channel


def test_a_connection_without_tls_or_without_the_pinned_ca_is_not_opened():
    for insecure, ca in ((True, None), (False, None), (True, b"ca")):
        with pytest.raises(ValueError, match="TLS"):
            supernode.open_channel("127.0.0.1:1", insecure, ca)


class Forgetful:
    """A way to a port of loopback that can forget its connections: the sockets stay open, and nothing comes through."""

    def __init__(self, port: int) -> None:
        self._target, self._listener = port, socket.create_server(("127.0.0.1", 0))
        self.port, self._open, self._forgotten = self._listener.getsockname()[1], [], set()
        threading.Thread(target=self._accept, daemon=True).start()

    def forget(self) -> None:
        self._forgotten.update(self._open)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                here, there = self._listener.accept()[0], socket.create_connection(("127.0.0.1", self._target))
                self._open += [here, there]
                for one, other in ((here, there), (there, here)):
                    threading.Thread(target=self._pass, args=(one, other), daemon=True).start()

    def _pass(self, one: socket.socket, other: socket.socket) -> None:
        with suppress(OSError):
            while piece := one.recv(65536):
                if one not in self._forgotten:
                    other.sendall(piece)

    def close(self) -> None:
        for one in (self._listener, *self._open):
            one.close()


@pytest.fixture
def answers():
    """A gRPC server under TLS that answers at once, or, asked for silence, after a minute; its CA and its port."""

    def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
        if request == b"silence":
            ended.wait(60)
        return request

    ended, now = threading.Event(), datetime.now(UTC)
    authority, key = new_authority("test", now), new_key_pem()
    certificate = server_certificate(authority, key, ("127.0.0.1",), now, 30)
    server = grpc.server(ThreadPoolExecutor(4))
    method = {"Call": grpc.unary_unary_rpc_method_handler(answer)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", method),))
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(key, certificate)]))
    server.start()
    yield authority.certificate_pem, port
    ended.set()
    server.stop(None).wait(5)


@pytest.mark.parametrize("watchful", [True, False], ids=["with-ours", "without"])
def test_a_call_on_a_connection_that_was_forgotten_fails_and_the_next_one_opens_another(answers, monkeypatch, watchful):
    """Without what we add it waits on, which is the fault."""
    ca, port = answers
    quick = [(name, 1000) for name, _ in supernode.OPTIONS]
    monkeypatch.setattr(supernode, "OPTIONS", quick if watchful else ())
    monkeypatch.setattr(supernode, "PATIENCE_S", 6.0)
    way = Forgetful(port)
    with supernode.open_channel(f"127.0.0.1:{way.port}", False, ca) as channel:
        call = channel.unary_unary(CALL)
        assert call(b"one", timeout=20) == b"one"
        way.forget()
        began = time.monotonic()
        with pytest.raises(grpc.RpcError) as failed:
            call(b"two", timeout=6)
        code = grpc.StatusCode.UNAVAILABLE if watchful else grpc.StatusCode.DEADLINE_EXCEEDED
        assert failed.value.code() == code and (time.monotonic() - began < 5) == watchful
        while watchful and time.monotonic() - began < 20:  # as Flower does: it asks again, and again
            with suppress(grpc.RpcError):
                assert call(b"three", timeout=20) == b"three"
                break
            time.sleep(0.2)
        assert not watchful or time.monotonic() - began < 20
    way.close()


def test_every_call_has_an_end_and_a_heartbeat_more_patience_than_flower_gives_it(answers, monkeypatch):
    ca, port = answers
    monkeypatch.setattr(supernode, "CALL_LIMIT_S", 1.0)
    monkeypatch.setattr(supernode, "PATIENCE_S", 3.0)
    with supernode.open_channel(f"127.0.0.1:{port}", False, ca) as channel:
        call = channel.unary_unary(CALL)
        for own_s, low_s, high_s in ((None, 0.9, 2.9), (0.2, 2.9, 30.0)):
            began = time.monotonic()
            with pytest.raises(grpc.RpcError) as failed:
                call(b"silence", timeout=own_s)
            assert failed.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
            assert low_s < time.monotonic() - began < high_s


STUCK = """
import threading, time
from wardround_client import supernode

def loop():
    threading.Thread(target=time.sleep, args=(600,)).start()
    {then}

supernode.flower_supernode = loop
supernode.main(["flower-supernode"])
"""


@pytest.mark.parametrize(
    ("then", "code"),
    [
        ("return", 1),
        ("raise RuntimeError('the main loop')", 1),
        ("threading.Thread(target=lambda: 1 / 0).start(); time.sleep(600)", -signal.SIGTERM),
    ],
    ids=["main-loop-gave-up", "main-loop-failed", "heartbeat-died"],
)
def test_a_supernode_of_which_a_part_has_ended_ends(then, code):
    """Flower's own would go on, with the thread that serves loopback, and look well."""
    script = STUCK.format(then=then)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == code, done.stderr
