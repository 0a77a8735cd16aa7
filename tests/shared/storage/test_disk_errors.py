"""A folder that cannot be written: full, read-only, not permitted and unreachable are told apart, with what to do."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from wardround.errors import UsageError
from wardround.storage.disk_errors import cause, is_of_the_disk, writing


@pytest.mark.parametrize(
    "number, message",
    [
        (errno.ENOSPC, "No space left on device; free some space"),
        (errno.EROFS, "Read-only file system; choose another folder, or have this one mounted writable"),
        (errno.EACCES, "Permission denied; choose another folder, or change its owner or permissions"),
        (errno.EPERM, "Operation not permitted; choose another folder"),
        (errno.EIO, "Input/output error; check the disk or the network share"),
    ],
)
def test_each_reason_has_its_own_line(tmp_path: Path, number: int, message: str) -> None:
    with pytest.raises(UsageError, match=f"results: cannot be written: {message}"), writing(tmp_path / "results"):
        raise OSError(number, os.strerror(number), "results/a")
    assert is_of_the_disk(OSError(number, ""))


def test_other_errors_are_defects_and_pass() -> None:
    assert not is_of_the_disk(OSError(errno.EBADF, "")) and not is_of_the_disk(ValueError())
    assert cause(OSError("cut short")) == "OSError"
    with pytest.raises(ValueError, match="a defect"), writing(Path("results")):
        raise ValueError("a defect")


def test_a_name_that_is_not_utf_8_is_shown(tmp_path: Path) -> None:
    with (
        pytest.raises(UsageError, match=r"K\\xf6ln: cannot be written: Not a directory; a part of the path is a file"),
        writing(Path(os.fsdecode(b"K\xf6ln"))),
    ):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
