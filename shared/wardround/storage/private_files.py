"""Files that belong to one program alone: written whole or not at all, readable by their owner only.

A key and what was made from it must appear together, or a crash between the two would leave a folder that nobody can
mend: `folder_at_once` makes them in one rename.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from wardround.errors import UsageError

OWNER_ONLY, OWNERS_FOLDER = 0o600, 0o700


def owner_only(path: str | os.PathLike[str], flags: int) -> int:
    """An opener for `open`: what it makes or writes is its owner's alone, whatever the umask."""
    descriptor = os.open(path, flags, OWNER_ONLY)
    os.fchmod(descriptor, OWNER_ONLY)  # of a file that is there already: an older version may have left it open to all
    return descriptor


def make_folder(folder: Path) -> None:
    """Make a folder and those missing above it, each its owner's alone; `mkdir` gives its mode to the last one only."""
    for path in (*(path for path in reversed(folder.parents) if not path.exists()), folder):
        path.mkdir(mode=OWNERS_FOLDER, exist_ok=True)


def write_private(path: Path, content: bytes, mode: int = OWNER_ONLY) -> None:
    """Write a file beside its place, fsync it, rename it into place, fsync the folder. Replaces what is there.

    Raises `UsageError` in one line where the folder cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        _write(partial, content, mode)
        os.replace(partial, path)
        _sync(path.parent)
    except OSError as error:
        raise _unwritable(path, error) from None


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file, made where it is missing; other processes wait. It ends with the process that holds it.

    Raises `UsageError` in one line where the file cannot be made.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, OWNER_ONLY)
    except OSError as error:
        raise _unwritable(path, error) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def folder_at_once(folder: Path, files: Mapping[str, bytes]) -> None:
    """Make a folder (0700) with all its files (0600) in one rename. It must not be there yet, or be empty.

    Raises `UsageError` in one line where it cannot be made, or holds something already.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)  # of an attempt that was killed
        partial.mkdir(mode=OWNERS_FOLDER)
        for name, content in files.items():
            _write(partial / name, content, OWNER_ONLY)
        _sync(partial)
        os.rename(partial, folder)
        _sync(folder.parent)
    except OSError as error:
        raise _unwritable(folder, error) from None


def own_folder(folder: Path, mark: str) -> None:
    """Make the folder of a site or a server (0700), or take one that is empty or has the file `mark` already.

    Raises `UsageError` where it holds other things: nobody wants their home folder to become a hospital.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=OWNERS_FOLDER)
        if (folder / mark).exists():
            return
        if any(not path.name.startswith(f".{mark}") for path in folder.iterdir()):
            raise UsageError(f"{folder}: holds other things; choose a new or an empty folder")
        folder.chmod(OWNERS_FOLDER)
    except OSError as error:
        raise _unwritable(folder, error) from None


def too_open(*paths: Path) -> Iterator[Path]:
    """Those of the paths that are there and that others than their owner may read or write."""
    for path in paths:
        if path.exists() and stat.S_IMODE(path.stat().st_mode) & 0o077:
            yield path


def _write(path: Path, content: bytes, mode: int) -> None:
    path.unlink(missing_ok=True)  # so that the mode below is the file's from its first byte
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        os.fchmod(file.fileno(), mode)  # whatever the umask
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unwritable(path: Path, error: OSError) -> UsageError:
    return UsageError(f"{path}: cannot be written: {error.strerror}")
