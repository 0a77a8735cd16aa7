"""Peers that stall on the receiving side of C-MOVE: each of their threads ends, and they hold up no other."""

from __future__ import annotations

import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pynetdicom import AE
from pynetdicom.sop_class import Verification

from wardround_client.pacs import storage_server
from wardround_client.pacs.dimse import Activity
from wardround_client.pacs.node import Node, open_node
from wardround_client.pacs.storage_server import MOST_PDU_BYTES, Refusal, StorageServer, receiving
from wardround_server.sites.certificates import new_authority, new_key_pem, server_certificate

SITE = """\
name = "north"
[privacy]
epsilon_cap = 8.0
delta_cap = 1e-4
[pacs.archive]
timeout_s = 1
[pacs.archive.dicom]
address = "127.0.0.1:104"
pacs_ae = "TESTPACS"
listen = "127.0.0.1:0"
"""
LIMIT_S = 15.0


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    monkeypatch.setattr(storage_server, "HANDSHAKE_S", 1.0)
    (tmp_path / "site.toml").write_text(SITE.replace(":0", ":11112"))
    one = open_node(tmp_path, "archive")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        listen = f"127.0.0.1:{free.getsockname()[1]}"
    dicom = one.dicom.model_copy(update={"listen": listen})
    return Node(name="archive", config=one.config.model_copy(update={"dicom": dicom}), site=tmp_path)


def opened(server: StorageServer) -> socket.socket:
    return socket.create_connection(server.server_address[:2], timeout=LIMIT_S)


def echoed(server: StorageServer, tls: ssl.SSLContext | None = None) -> float:
    """Return for how many seconds the PACS waits until its echo is answered."""
    entity, begun = AE("TESTPACS"), time.monotonic()
    entity.add_requested_context(Verification)
    host, port = server.server_address[:2]
    names = None if tls is None else (tls, "127.0.0.1")
    association = entity.associate(str(host), port, ae_title=server.ae_title, tls_args=names)
    assert association.is_established and association.send_c_echo().Status == 0
    association.release()
    return time.monotonic() - begun


def ends(one: socket.socket) -> float:
    """Return after how many seconds the server ends a connection."""
    begun = time.monotonic()
    try:
        while one.recv(4096):
            pass
    except ConnectionError:
        pass
    return time.monotonic() - begun


def no_thread_is_left(before: set[threading.Thread]) -> None:
    until = time.monotonic() + LIMIT_S
    while left := [one for one in set(threading.enumerate()) - before if "serve_forever" not in one.name]:
        assert time.monotonic() < until, left
        time.sleep(0.05)


@contextmanager
def trickled(one: socket.socket, content: bytes) -> Iterator[None]:
    """Send a byte each 50 ms, without end."""
    over = threading.Event()

    def send() -> None:
        place = 0
        while not over.wait(0.05):
            try:
                one.sendall(content[place : place + 1] or b"x")
            except OSError:
                return
            place += 1

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_silent_and_slow_peers_end_and_the_pacs_is_served_meanwhile(node: Node) -> None:
    request = b"\x01\x00" + struct.pack(">L", 1000)  # the head of a request for an association
    with receiving(node, lambda content: True, Activity(time.monotonic() + LIMIT_S)) as server:
        before = set(threading.enumerate())
        silent, half, slow = opened(server), opened(server), opened(server)
        half.sendall(request[:3])
        with trickled(slow, request):
            assert echoed(server) < 3
            assert max(map(ends, (silent, half, slow))) < LIMIT_S / 2
        no_thread_is_left(before)
    for one in (silent, half, slow):
        one.close()


def test_a_pdu_that_is_announced_too_long_ends_the_connection(node: Node) -> None:
    with receiving(node, lambda content: True, Activity(time.monotonic() + LIMIT_S)) as server, opened(server) as one:
        one.sendall(b"\x04\x00" + struct.pack(">L", MOST_PDU_BYTES + 1))
        assert ends(one) < 0.7, "at once, not after a timeout"
        assert echoed(server) < 3


def test_connections_beyond_the_limit_are_closed_and_counted(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_server, "MOST_CONNECTIONS", 3)
    with receiving(node, lambda content: True, Activity(time.monotonic() + LIMIT_S)) as server:
        many = [opened(server) for _ in range(6)]
        for one in many:
            ends(one)
            one.close()
        assert 1 <= server.refused[Refusal.FULL] <= 5  # one that begins its association may count twice for a moment
        no_thread_is_left(set(threading.enumerate()) - set(server.active_associations))
        assert echoed(server) < 3


def test_a_stalled_tls_handshake_holds_up_nobody_and_ends(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    now, key = datetime.now(UTC), new_key_pem()
    authority = new_authority("test", now)
    certificate = server_certificate(authority, key, ("127.0.0.1",), now, 9)
    for name, content in (("own.pem", certificate), ("own.key", key), ("ca.pem", authority.certificate_pem)):
        (node.site / name).write_bytes(content)
    tls, theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context(cafile=node.site / "ca.pem")
    tls.load_cert_chain(node.site / "own.pem", node.site / "own.key")
    monkeypatch.setattr(storage_server, "server_tls", lambda node: tls)
    with receiving(node, lambda content: True, Activity(time.monotonic() + LIMIT_S)) as server:
        before = set(threading.enumerate())
        stalled = [opened(server) for _ in range(5)]
        with trickled(stalled[0], b"\x16\x03\x01\x02\x00\x01"):
            assert echoed(server, theirs) < 0.9, "not even the first of them is waited for"
            for one in stalled:
                assert ends(one) < LIMIT_S / 2
                one.close()
        assert server.refused[Refusal.TLS] == 5
        no_thread_is_left(before)
