"""Atomic files: written completely or not at all, durable on return, accessible to their owner only.

A file is written under a temporary name in the same folder (`.NAME.partial`), fsynced and renamed, and then the folder
is fsynced. After a crash either the old or the new file exists, never a part of one. The next write replaces a
temporary file that a crash left behind.

A key and the files made from it must appear together, because a crash between two renames would leave a folder that
cannot be repaired: `write_folder` creates them in one rename.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from wardround.storage.disk_errors import unwritable

OWNER_ONLY, OWNERS_FOLDER = 0o600, 0o700
NO_HARD_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


def owner_only(path: str | os.PathLike[str], flags: int) -> int:
    """Open a file with mode 0600, regardless of the umask; an opener for `open`."""
    descriptor = os.open(path, flags, OWNER_ONLY)
    os.fchmod(descriptor, OWNER_ONLY)  # an older version may have created the file readable by all
    return descriptor


def write_file(path: Path, content: bytes, mode: int | None = OWNER_ONLY) -> None:
    """Write or replace a file atomically; durable on return.

    Args:
        path: The file. Its folder must exist.
        content: The complete content.
        mode: The file's mode, regardless of the umask. None uses the umask, for results that a user may share.

    Raises:
        OSError: The file cannot be written. No temporary file is left behind.
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
    """Write a file like `write_file`, but raise a one-line `UsageError` if it cannot be written."""
    try:
        write_file(path, content, mode)
    except OSError as error:
        raise unwritable(path, error) from None


def write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Create a folder (0700) with all its files (0600) in one rename. It must be missing or empty.

    Raises a one-line `UsageError` if the folder cannot be created or is not empty.
    """
    partial = partial_path(folder)
    try:
        shutil.rmtree(partial, ignore_errors=True)  # left by an attempt that was killed
        partial.mkdir(mode=OWNERS_FOLDER)
        for name, content in files.items():
            write_synced(partial / name, content, OWNER_ONLY)
        fsync(partial)
        os.rename(partial, folder)
        fsync(folder.parent)
    except OSError as error:
        raise unwritable(folder, error) from None


def settle_new(partial: Path, path: Path) -> None:
    """Give a complete file the name `path`, which no file may have. The name `partial` may remain.

    A hard link is used, because a rename would replace an existing file. A file system without hard links (FAT, some
    network shares) gets a new empty file instead, which the rename replaces.

    Raises:
        FileExistsError: There is a file of that name.
        OSError: The name cannot be given.
    """
    try:
        os.link(partial, path)
    except OSError as error:
        if error.errno not in NO_HARD_LINKS:
            raise
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, OWNER_ONLY))
        os.replace(partial, path)


def partial_path(path: Path) -> Path:
    """Return the temporary name under which a file or folder is written before the rename."""
    return path.with_name(f".{path.name}.partial")


def write_synced(path: Path, content: bytes, mode: int | None = OWNER_ONLY) -> None:
    """Write and fsync a file in place. This is not atomic: it is for files that are not opened before a rename."""
    path.unlink(missing_ok=True)  # so that the file has the mode below from its first byte
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666 if mode is None else mode), "wb") as file:
        if mode is not None:
            os.fchmod(file.fileno(), mode)  # regardless of the umask
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def fsync(path: Path) -> None:
    """Make a file's content, or the names in a folder, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
