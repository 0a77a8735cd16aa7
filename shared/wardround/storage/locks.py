"""Locks between processes: advisory locks on files (flock), which end with the process that holds them.

A lock belongs to an open file: it is given up when the file is closed or its process ends, however it ends. So a kill
never leaves a lock behind, and a lock file that lies in a folder says nothing about who holds it.
"""

from __future__ import annotations

import fcntl
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from wardround.storage.atomic import OWNER_ONLY, unwritable

POLL_S = 0.2  # how often a lock is tried while it is waited for with a time limit


def lock(descriptor: int, *, shared: bool = False, timeout_s: float = math.inf) -> bool:
    """Lock an open file; False where another process holds it for longer than `timeout_s`.

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
    """Open a lock file, made for its owner alone where it is missing. Raises `OSError`."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | flags, OWNER_ONLY)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file, made where it is missing; wait for other processes.

    Raises `UsageError` in one line where the file cannot be made.
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
    """Hold a lock file unless another process does; yields whether it is held. Raises `OSError`.

    The caller turns False into an error that says what the other process is doing.
    """
    descriptor = open_lock(path)
    try:
        yield lock(descriptor, timeout_s=timeout_s)
    finally:
        os.close(descriptor)


@contextmanager
def locked_if_there(path: Path) -> Iterator[None]:
    """Share a lock file with other readers, and wait for a writer. A missing file means that nothing was written.

    It is opened for reading alone, so that a folder that cannot be written can still be read.
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
    """Whether a process holds the lock file now; False where there is no such file."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        return not lock(descriptor, shared=True, timeout_s=0.0)
    finally:
        os.close(descriptor)
