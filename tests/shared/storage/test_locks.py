"""Locks exclude other open files of any process, end with their process, and report when they are held."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from wardround.errors import UsageError
from wardround.storage.locks import is_locked, locked, locked_if_there, try_locked

HOLDS = """
import sys, time
from pathlib import Path
from wardround.storage.locks import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_lock_is_held_once_and_given_up_with_the_block(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    assert not is_locked(path) and not path.exists(), "looking makes no file"
    with try_locked(path) as mine:
        assert mine and is_locked(path) and path.stat().st_mode & 0o777 == 0o600
        with try_locked(path) as again:
            assert not again
    assert not is_locked(path)
    with pytest.raises(ZeroDivisionError), try_locked(path):
        raise ZeroDivisionError
    assert not is_locked(path)


def test_a_lock_is_waited_for_as_long_as_was_asked(tmp_path: Path) -> None:
    with locked(tmp_path / ".lock"):
        began = time.monotonic()
        with try_locked(tmp_path / ".lock", timeout_s=0.3) as mine:
            assert not mine and time.monotonic() - began >= 0.3


def test_a_lock_ends_with_a_process_that_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDS, str(tmp_path / ".lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        assert is_locked(tmp_path / ".lock")
        with try_locked(tmp_path / ".lock") as mine:
            assert not mine
        holder.kill()
    with try_locked(tmp_path / ".lock", timeout_s=10.0) as mine:
        assert mine


def test_readers_share_a_lock_and_make_no_file(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with locked_if_there(path):
        assert not path.exists()
    path.touch(mode=0o400)
    with locked_if_there(path), locked_if_there(path), try_locked(tmp_path / ".other") as other:
        assert other


def test_a_lock_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    with (
        pytest.raises(UsageError, match=r"\.lock: cannot be written: No such file or directory; check the path$"),
        locked(tmp_path / "none" / ".lock"),
    ):
        pass
