"""Locks between processes: advisory locks on files (flock), which end with the process that holds them.

A lock belongs to an open file and is released when the file is closed or the process ends, for whatever reason. A kill
therefore never leaves a lock behind, and the existence of a lock file does not mean that the lock is held.
"""

from __future__ import annotations

import fcntl
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from wardround.storage.atomic import OWNER_ONLY
from wardround.storage.disk_errors import unwritable

POLL_S = 0.2  # pause between two attempts to get a lock within a time limit


def lock(descriptor: int, *, shared: bool = False, timeout_s: float = math.inf) -> bool:
    """Lock an open file; return False if other processes hold the lock for longer than `timeout_s`.

    A shared lock is compatible with other shared locks and excludes exclusive ones.
    """
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    if timeout_s == math.inf:
        fcntl.flock(descriptor, kind)
        return True
    end = time.monotonic() + timeout_s
    while True:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= end:
                return False
            time.sleep(POLL_S)
        else:
            return True


def open_lock(path: Path, flags: int = 0) -> int:
    """Open a lock file, created with mode 0600 if it is missing. Raises `OSError` on failure."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | flags, OWNER_ONLY)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file, which is created if it is missing; wait while another process holds it.

    Raises a one-line `UsageError` if the file cannot be opened or created.
    """
    try:
        descriptor = open_lock(path)
    except OSError as error:
        raise unwritable(path, error) from None
    try:
        lock(descriptor)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def try_locked(path: Path, timeout_s: float = 0.0) -> Iterator[bool]:
    """Try to hold the lock of a file; yield whether it is held. Raises `OSError` if the file cannot be opened.

    The caller turns False into an error that names the work of the other process.
    """
    descriptor = open_lock(path)
    try:
        yield lock(descriptor, timeout_s=timeout_s)
    finally:
        os.close(descriptor)


@contextmanager
def locked_if_there(path: Path) -> Iterator[None]:
    """Hold the shared lock of a file, waiting for a writer. Without the file nothing was written, and no lock is taken.

    The file is opened read-only, so that a read-only folder can still be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield
        return
    try:
        lock(descriptor, shared=True)
        yield
    finally:
        os.close(descriptor)


def is_locked(path: Path) -> bool:
    """Return whether a process holds the exclusive lock of the file now; False if the file does not exist."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        return not lock(descriptor, shared=True, timeout_s=0.0)
    finally:
        os.close(descriptor)
