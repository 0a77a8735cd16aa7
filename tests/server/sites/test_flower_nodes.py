"""A real SuperLink of Flower admits exactly the keys of the registry, also after restarts and kills."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from wardround.identity import key_fingerprint
from wardround.processes.supervisor import supervise
from wardround_server.flower.superlink import Ports, SuperLink
from wardround_server.operations.folder import found
from wardround_server.sites.flower_nodes import keep_nodes

pytestmark = pytest.mark.slow


def public_key() -> str:
    form = serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    return ec.generate_private_key(ec.SECP384R1()).public_key().public_bytes(*form).decode()


@contextlib.contextmanager
def running(folder: Path) -> Iterator[SuperLink]:
    """A SuperLink of a new server folder, for as long as the block lasts."""
    found(folder, "127.0.0.1", "test", 9092, None, datetime.now(UTC))
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        fleet, control = one.getsockname()[1], other.getsockname()[1]
    superlink = SuperLink(folder=folder, ports=Ports(listen="127.0.0.1", fleet=fleet, control=control))
    stopped, child = threading.Event(), superlink.child()
    thread = threading.Thread(target=supervise, args=([child], stopped, lambda: None))
    thread.start()
    try:
        ends = time.monotonic() + 60
        while not child.is_up and time.monotonic() < ends:
            time.sleep(0.1)
        yield superlink
    finally:
        stopped.set()
        thread.join()


def let_in(superlink: SuperLink) -> set[str]:
    """The numbers of the nodes that Flower lets in."""
    return {node["node-id"] for node in superlink.nodes() if node["status"] != "unregistered"}


def numbers(superlink: SuperLink) -> dict[str, str]:
    return json.loads((superlink.home / "nodes.json").read_text())


def test_flower_lets_in_exactly_the_keys_of_the_registry(tmp_path: Path, monkeypatch, caplog) -> None:
    north, south, second = public_key(), public_key(), public_key()
    with running(tmp_path) as superlink:
        keep_nodes(superlink, {"north": north, "south": south})
        first = numbers(superlink)
        assert let_in(superlink) == set(first.values()) and len(first) == 2

        keep_nodes(superlink, {"north": north})  # south is revoked: it goes, and nobody else
        assert let_in(superlink) == {first[key_fingerprint(north)]}

        keep_nodes(superlink, {"north": second})  # the key under a name was replaced
        after = numbers(superlink)[key_fingerprint(second)]
        assert let_in(superlink) == {after} and after not in first.values()

        keep_nodes(superlink, {"north": second, "south": south})  # a key that was out never comes back, and is told
        assert let_in(superlink) == {after} and "site south cannot be admitted" in caplog.text

        third, register = public_key(), SuperLink.register
        with monkeypatch.context() as patch:  # killed when Flower has registered, before it is written down

            def dies(self: SuperLink, name: str, key: str) -> str:
                register(self, name, key)
                raise KeyboardInterrupt

            patch.setattr(SuperLink, "register", dies)
            with pytest.raises(KeyboardInterrupt):
                keep_nodes(superlink, {"north": second, "west": third})
        assert len(let_in(superlink)) == 2
        keep_nodes(superlink, {"north": second, "west": third})
        assert let_in(superlink) == {after, numbers(superlink)[key_fingerprint(third)]}
