"""Loopback ports for the daemons of a local federation, chosen so that two federations of one user never collide.

A port that is free when it is chosen may be taken before a daemon listens on it. So a process first claims a port with
a lock, which the kernel releases however the process ends. A process that finds a port claimed or in use tries the next
one.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from wardround.errors import WardroundError
from wardround.operations.tls_probe import port_is_free
from wardround.storage.atomic import OWNERS_FOLDER
from wardround.storage.locks import lock, open_lock

LOOPBACK = "127.0.0.1"
PORTS = range(19092, 19492)


@dataclass(frozen=True, kw_only=True)
class LocalPorts:
    """The ports that this process has claimed."""

    choice: Iterable[int] = PORTS
    folder: Path = field(default_factory=lambda: Path(tempfile.gettempdir()) / f"wardround-ports-{os.getuid()}")
    _claims: dict[int, int] = field(default_factory=dict)  # port -> descriptor of its lock, open until the end

    def claim(self, port: int) -> bool:
        """Claim a port, and return False if another process has claimed it or listens on it.

        Returns True for a port that this object has already claimed.
        """
        if port in self._claims:
            return True
        self.folder.mkdir(mode=OWNERS_FOLDER, parents=True, exist_ok=True)
        # Other users may write to the temporary folder; O_NOFOLLOW stops a link there from creating files elsewhere.
        descriptor = open_lock(self.folder / str(port), os.O_NOFOLLOW)
        if not (lock(descriptor, timeout_s=0.0) and port_is_free(LOOPBACK, port)):
            os.close(descriptor)
            return False
        self._claims[port] = descriptor
        return True

    def next(self) -> int:
        """Claim and return the first free port. Raises `WardroundError` if there is none."""
        for port in self.choice:
            if port not in self._claims and self.claim(port):
                return port
        raise WardroundError(
            f"{LOOPBACK}: no free port from {min(self.choice)} to {max(self.choice)}; stop a program that uses one"
        )

    def release(self) -> None:
        """Release all claims."""
        for descriptor in self._claims.values():
            os.close(descriptor)
        self._claims.clear()
