"""Waiting for the ports of a daemon, before it reports that it works."""

from __future__ import annotations

import errno
import threading
import time

from wardround.errors import WardroundError
from wardround.operations.tls_probe import listen_error

PORT_LIMIT_S = 10.0  # how long a port may be taken by the processes of a daemon that was killed
POLL_S = 0.2


def wait_for_port(
    address: str, port: int, advice: str, stopped: threading.Event, limit_s: float = PORT_LIMIT_S
) -> None:
    """Wait until a port is free, which takes a moment after a daemon was killed.

    Raises:
        WardroundError: Another program uses the port, this machine has no such address, or the port is not permitted.
            The message ends with `advice`.
    """
    ends = time.monotonic() + limit_s
    while (error := listen_error(address, port)) is not None:
        if error.errno != errno.EADDRINUSE:
            raise WardroundError(f"port {port} of {address} cannot be used: {error.strerror}; {advice}")
        if stopped.wait(POLL_S) or time.monotonic() > ends:
            raise WardroundError(
                f"port {port} of {address} is taken by another program; stop that program, or {advice}"
            )
