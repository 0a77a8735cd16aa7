"""Atomic files: after an interruption the content is wholly old or wholly new, and only the owner can read it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from wardround.errors import UsageError
from wardround.storage import atomic
from wardround.storage.atomic import OWNER_ONLY, partial_path, write_file, write_folder, write_private

STEPS = ("open", "fsync", "replace")


class Kill(BaseException):
    """Stands for a kill: nothing in the product may catch it."""


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("step", STEPS)
def test_a_kill_at_any_step_leaves_the_old_file_or_the_new_one(tmp_path: Path, monkeypatch, step: str, late: bool):
    path = tmp_path / "file"
    write_file(path, b"old")
    real = getattr(os, step)

    def killed(*words, **options):
        if late:
            real(*words, **options)
        raise Kill

    with monkeypatch.context() as patch:
        patch.setattr(atomic.os, step, killed)
        with pytest.raises(Kill):
            write_file(path, b"the new content")
    assert path.read_bytes() == (b"the new content" if step == "replace" and late else b"old")
    write_file(path, b"newest")
    assert path.read_bytes() == b"newest" and [one.name for one in tmp_path.iterdir()] == ["file"]


def test_the_file_is_synced_before_the_rename_and_the_folder_after_it(tmp_path: Path, monkeypatch) -> None:
    story: list[str] = []
    fsync, replace = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        story.append(f"fsync {Path(os.readlink(f'/proc/self/fd/{descriptor}')).name}")
        fsync(descriptor)

    def replaced(old: Path, new: Path) -> None:
        story.append(f"rename {Path(new).name}")
        replace(old, new)

    monkeypatch.setattr(atomic.os, "fsync", synced)
    monkeypatch.setattr(atomic.os, "replace", replaced)
    write_file(tmp_path / "file", b"content")
    assert story == ["fsync .file.partial", "rename file", f"fsync {tmp_path.name}"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_where_the_disk_refuses_the_old_file_stays_and_nothing_else(tmp_path: Path, monkeypatch, step: str) -> None:
    path = tmp_path / "file"
    write_file(path, b"old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(atomic.os, step, full)
    with pytest.raises(OSError, match="No space left"):
        write_file(path, b"new")
    with pytest.raises(UsageError, match=r"file: cannot be written: No space left on device; free some space"):
        write_private(path, b"new")
    assert path.read_bytes() == b"old" and [one.name for one in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o277])
def test_the_mode_is_the_owners_whatever_the_umask_and_whatever_was_there(tmp_path: Path, umask: int) -> None:
    path = tmp_path / "file"
    path.touch(mode=0o666)
    partial_path(path).touch(mode=0o666)
    before = os.umask(umask)
    try:
        write_file(path, b"secret")
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == OWNER_ONLY


def test_without_a_mode_the_umask_decides(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_file(tmp_path / "result.json", b"{}", mode=None)
    finally:
        os.umask(before)
    assert (tmp_path / "result.json").stat().st_mode & 0o777 == 0o640


def test_a_folder_appears_with_all_its_files_or_not_at_all(tmp_path: Path, monkeypatch) -> None:
    files = {"key": b"secret", "certificate": b"public"}

    def killed(*_: object) -> None:
        raise Kill

    with monkeypatch.context() as patch:
        patch.setattr(atomic.os, "rename", killed)
        with pytest.raises(Kill):
            write_folder(tmp_path / "keys", files)
    assert not (tmp_path / "keys").exists()
    write_folder(tmp_path / "keys", files)
    assert {path.name: path.read_bytes() for path in (tmp_path / "keys").iterdir()} == files
    assert [one.name for one in tmp_path.iterdir()] == ["keys"]
    with pytest.raises(UsageError, match="cannot be written"):
        write_folder(tmp_path / "keys", files)
