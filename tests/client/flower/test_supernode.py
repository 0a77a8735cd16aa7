"""Additions to Flower's SuperNode at a hospital: it detects dead connections, and ends when one of its parts ends."""

import inspect
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from datetime import UTC, datetime

import grpc
import pytest
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.client.grpc_rere_client import connection
from flwr.proto.message_pb2 import ObjectTree
from flwr.server.superlink.linkstate.in_memory_linkstate import InMemoryLinkState
from flwr.supercore.grpc import create_channel
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError
from flwr.supercore.object_store.in_memory_object_store import InMemoryObjectStore
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.federation import NoOpFederationManager
from flwr.supernode import start_client_internal

from wardround_client.flower import connection as link
from wardround_server.sites.certificates import new_authority, new_key_pem, server_certificate

CALL = "/test.Echo/Call"


def test_flower_opens_its_connection_by_the_function_that_is_replaced():
    ours, theirs = inspect.signature(link.open_channel), inspect.signature(create_channel)
    assert list(ours.parameters) == list(theirs.parameters)
    inside = inspect.unwrap(connection.grpc_request_response)
    assert "create_channel" in inside.__code__.co_names and connection.create_channel is create_channel
    opens = inspect.unwrap(start_client_internal._init_connection)
    assert "grpc_request_response" in opens.__code__.co_names
    assert start_client_internal.grpc_request_response is connection.grpc_request_response


def test_a_connection_without_tls_or_without_the_pinned_ca_is_not_opened():
    for insecure, ca in ((True, None), (False, None), (True, b"ca")):
        with pytest.raises(ValueError, match="TLS"):
            link.open_channel("127.0.0.1:1", insecure, ca)


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
    quick = [(name, 1000) for name, _ in link.OPTIONS]
    monkeypatch.setattr(link, "OPTIONS", quick if watchful else ())
    monkeypatch.setattr(link, "PATIENCE_S", 6.0)
    way = Forgetful(port)
    with link.open_channel(f"127.0.0.1:{way.port}", False, ca) as channel:
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
    monkeypatch.setattr(link, "CALL_LIMIT_S", 1.0)
    monkeypatch.setattr(link, "PATIENCE_S", 3.0)
    with link.open_channel(f"127.0.0.1:{port}", False, ca) as channel:
        call = channel.unary_unary(CALL)
        for own_s, low_s, high_s in ((None, 0.9, 2.9), (0.2, 2.9, 30.0)):
            began = time.monotonic()
            with pytest.raises(grpc.RpcError) as failed:
                call(b"silence", timeout=own_s)
            assert failed.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
            assert low_s < time.monotonic() - began < high_s


class Sessions:
    """Flower's own store of replies, asked as its Fleet API does; `cut` says at which calls an answer is lost."""

    def __init__(self, cut: Callable[[int], bool]) -> None:
        self._state = InMemoryLinkState(NoOpFederationManager(), InMemoryObjectStore())
        self._cut, self.calls = cut, 0

    def announce(self, message: Message, tree: ObjectTree, seconds: float) -> tuple[set[str], str]:
        session = self._state.start_session(1)
        return set(self._state.preregister_object_tree(tree, session)), session

    def push(self, run_id: int, session: str, piece: str, content: bytes) -> None:
        self.calls += 1
        stored = self._state.store_object(run_id, session, piece, content)
        if stored and self._cut(
            self.calls
        ):  # the line is cut before the answer; Flower's stub makes the same call again
            stored = self._state.store_object(run_id, session, piece, content)
        if not stored:
            raise ObjectPushError(piece, run_id, session)

    def has(self, piece: str) -> bytes | None:
        return self._state.get_object(1, piece)


@pytest.mark.parametrize("ours", [True, False], ids=["with-ours", "without"])
def test_a_reply_whose_line_is_cut_at_every_other_piece_arrives_whole(ours, monkeypatch):
    """Without what we add Flower drops it at the first cut."""
    monkeypatch.setattr(TaskIdentity, "_run_id", 1)
    monkeypatch.setattr(TaskIdentity, "_node_id", 1)
    monkeypatch.setattr(TaskIdentity, "_task_id", 1)
    arrays = {f"layer-{n}": Array("float32", (4,), "raw", bytes([n] * 16)) for n in range(12)}
    message = Message(RecordDict({"tensors": ArrayRecord(arrays)}), dst_node_id=1, message_type="train")
    server = Sessions(cut=lambda call: call % 2 == 1)
    way = link.ReplyOnItsWay(server.announce, server.push) if ours else server
    missing, session = way.announce(message, get_object_tree(message), 1.0)
    pieces = {name: one.deflate() for name, one in get_all_nested_objects(message).items()}
    assert missing == set(pieces) and len(pieces) > 12
    with nullcontext() if ours else pytest.raises(ObjectPushError):
        with ThreadPoolExecutor(2) as two:
            for done in [two.submit(way.push, 1, session, name, content) for name, content in pieces.items()]:
                done.result()
        assert {name: server.has(name) for name in pieces} == pieces


STUCK = """
import threading, time
from wardround_client.flower import supernode

def loop():
    threading.Thread(target=time.sleep, args=(600,)).start()
    {then}

supernode.flower_supernode = loop
supernode.main(["site", "flower-supernode"])
"""


@pytest.mark.parametrize(
    ("then", "code", "word"),
    [
        ("return", 1, "main loop failed"),
        ("raise RuntimeError('the main loop')", 1, "main loop failed"),
        ("threading.Thread(target=lambda: 1 / 0).start(); time.sleep(600)", -signal.SIGTERM, "ZeroDivisionError"),
    ],
    ids=["main-loop-gave-up", "main-loop-failed", "heartbeat-died"],
)
def test_a_supernode_of_which_a_part_has_ended_ends(then, code, word):
    """Flower's own would go on, with the thread that serves loopback, and look well."""
    script = STUCK.format(then=then)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert (done.returncode, word in done.stdout + done.stderr) == (code, True), done.stderr
