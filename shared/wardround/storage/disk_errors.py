"""Errors that come from the disk or the permissions of a path, told apart in one line: what happened and what to do."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from wardround.errors import UsageError
from wardround.storage.text_file import path_text

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_PERMISSIONS = "choose another folder, or change its owner or permissions"
_SHARE = "check the disk or the network share, then run the same command again"
_ADVICE = {
    errno.ENOSPC: "free some space or choose another folder",
    errno.EDQUOT: "free some space or choose another folder",
    errno.EFBIG: "choose a folder whose file system and limits (ulimit -f) allow larger files",
    errno.EROFS: "choose another folder, or have this one mounted writable",
    errno.EACCES: _PERMISSIONS,
    errno.EPERM: _PERMISSIONS,
    errno.ENOTDIR: "a part of the path is a file; choose another folder",
    errno.EISDIR: "it is a folder; give a file",
    errno.ELOOP: "the path has a loop of links; choose another folder",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOENT: "check the path",
    errno.EIO: _SHARE,
    errno.ENODEV: _SHARE,
    errno.ENXIO: _SHARE,
    errno.ESTALE: _SHARE,
    errno.ENOTCONN: _SHARE,
    errno.EHOSTDOWN: _SHARE,
    errno.ETIMEDOUT: _SHARE,
}


def is_of_the_disk(error: BaseException) -> bool:
    """Return whether an error names the disk, a permission or a path, and not a defect of the program."""
    return isinstance(error, OSError) and error.errno in _ADVICE


def cause(error: OSError) -> str:
    """Return what the system reported and, if it is known, what to do about it."""
    advice = _ADVICE.get(error.errno or 0)
    return f"{error.strerror or type(error).__name__}{f'; {advice}' if advice else ''}"


def unwritable(path: Path, error: OSError) -> UsageError:
    """Return the error for a file or folder that cannot be written."""
    return UsageError(f"{path_text(path)}: cannot be written: {cause(error)}")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an `OSError` of the block, which writes `path` or files below it, into the one-line error for `path`."""
    try:
        yield
    except OSError as error:
        raise unwritable(path, error) from None


def require_writable(path: Path) -> None:
    """Raise the one-line `UsageError` unless files can be created at `path`, or where its missing folders will be.

    Nothing is left behind. `os.access` would not do: it gives no reason, and other answers than a network share.
    """
    try:
        there = next(place for place in (path, *path.absolute().parents) if os.path.lexists(place))
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise unwritable(path, error) from None
