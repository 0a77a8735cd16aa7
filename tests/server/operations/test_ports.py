"""The server says that it listens only if its ports are free."""

import socket
import threading

import pytest

from wardround.errors import WardroundError
from wardround_server.flower.superlink import Ports
from wardround_server.operations.daemon import wait_for_ports


def taken() -> socket.socket:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    return listener


def free() -> int:
    with taken() as listener:
        return listener.getsockname()[1]


@pytest.mark.parametrize("which", ["fleet", "control"])
def test_a_port_that_another_program_uses_is_one_line(which: str) -> None:
    with taken() as listener:
        number = listener.getsockname()[1]
        ports = Ports(**{"listen": "127.0.0.1", "fleet": free(), "control": free(), which: number})
        with pytest.raises(WardroundError, match=f"port {number} of 127.0.0.1 is taken by another program"):
            wait_for_ports(ports, threading.Event(), limit_s=0.3)


def test_a_port_that_gets_free_in_time_is_waited_for() -> None:
    listener = taken()
    ports = Ports(listen="127.0.0.1", fleet=listener.getsockname()[1], control=free())
    threading.Timer(0.5, listener.close).start()
    wait_for_ports(ports, threading.Event(), limit_s=20)


def test_an_address_of_another_machine_is_named_at_once() -> None:
    ports = Ports(listen="192.0.2.1", fleet=free(), control=free())  # of documents only (RFC 5737)
    with pytest.raises(WardroundError, match="192.0.2.1 cannot be used: Cannot assign requested address; choose"):
        wait_for_ports(ports, threading.Event(), limit_s=60)
