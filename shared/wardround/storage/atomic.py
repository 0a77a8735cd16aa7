"""Atomic files: written whole or not at all, durable on return, readable by their owner only.

A file is written under a temporary name beside its place (`.NAME.partial`), fsynced and renamed, and then its folder is
fsynced. After a crash the old file or the new one is there, never a part of one. The next write replaces a temporary
file that a crash left behind.

A key and what was made from it must appear together, or a crash between the two would leave a folder that nobody can
repair: `write_folder` makes them in one rename.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from wardround.errors import UsageError

OWNER_ONLY, OWNERS_FOLDER = 0o600, 0o700


def owner_only(path: str | os.PathLike[str], flags: int) -> int:
    """An opener for `open`: the file is its owner's alone, whatever the umask."""
    descriptor = os.open(path, flags, OWNER_ONLY)
    os.fchmod(descriptor, OWNER_ONLY)  # of a file that is there already: an older version may have left it open to all
    return descriptor


def write_file(path: Path, content: bytes, mode: int | None = OWNER_ONLY) -> None:
    """Write a file in one step, replacing what is there; durable on return. Raises `OSError`; nothing is left then.

    Args:
        path: Where the file appears. Its folder must exist.
        content: All of it.
        mode: Its mode, whatever the umask. None takes what the umask gives, for results that a user may share.
    """
    partial = partial_path(path)
    try:
        write_synced(partial, content, mode)
        os.replace(partial, path)
        fsync(path.parent)
    except OSError:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def write_private(path: Path, content: bytes, mode: int = OWNER_ONLY) -> None:
    """`write_file`, with an error for users: raises `UsageError` in one line where the folder cannot be written."""
    try:
        write_file(path, content, mode)
    except OSError as error:
        raise unwritable(path, error) from None


def write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Make a folder (0700) with all its files (0600) in one rename. It must not be there yet, or be empty.

    Raises `UsageError` in one line where it cannot be made, or holds something already.
    """
    partial = partial_path(folder)
    try:
        shutil.rmtree(partial, ignore_errors=True)  # of an attempt that was killed
        partial.mkdir(mode=OWNERS_FOLDER)
        for name, content in files.items():
            write_synced(partial / name, content, OWNER_ONLY)
        fsync(partial)
        os.rename(partial, folder)
        fsync(folder.parent)
    except OSError as error:
        raise unwritable(folder, error) from None


def partial_path(path: Path) -> Path:
    """Where a file or folder is written before it gets its name."""
    return path.with_name(f".{path.name}.partial")


def write_synced(path: Path, content: bytes, mode: int | None = OWNER_ONLY) -> None:
    """Write and fsync a file under its own name: not atomic, for files that nobody opens before they are renamed."""
    path.unlink(missing_ok=True)  # so that the mode below is the file's from its first byte
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666 if mode is None else mode), "wb") as file:
        if mode is not None:
            os.fchmod(file.fileno(), mode)  # whatever the umask
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def fsync(path: Path) -> None:
    """Make durable a file's content, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def unwritable(path: Path, error: OSError) -> UsageError:
    """The error for a file or folder that the system refuses to write."""
    return UsageError(f"{path}: cannot be written: {error.strerror}")
