"""A backup restores the folder bit for bit and completely or not at all, and no tar file can write elsewhere."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import sqlite3
import tarfile
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from wardround.errors import UsageError
from wardround_server.operations.backup import CONTENTS, backup, restore
from wardround_server.operations.folder import found, whole
from wardround_server.sites.registry import Registry

CONFIG = b"[server]\n"


@pytest.fixture
def server(tmp_path: Path) -> Path:
    folder = tmp_path / "fed"
    found(folder, "localhost", "test", 9092, None, datetime.now(UTC))
    (folder / "studies").mkdir()
    (folder / "studies" / "a.json").write_text("{}")
    (folder / "logs").mkdir()
    (folder / "logs" / "server.log").write_text("much")
    return folder


def files(folder: Path) -> dict[str, tuple[str, int]]:
    """Each file's hash and what its owner may do with it."""
    return {
        path.relative_to(folder).as_posix(): (
            hashlib.sha256(path.read_bytes()).hexdigest(),
            path.stat().st_mode & 0o700,
        )
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_backup_restored_is_the_same_folder_without_its_logs(server: Path, tmp_path: Path) -> None:
    before = files(server)
    made = backup(server, tmp_path / "b.tar")
    assert (tmp_path / "b.tar").stat().st_mode & 0o777 == 0o600
    done = restore(tmp_path / "b.tar", tmp_path / "new")
    after = files(tmp_path / "new")
    assert after == {name: what for name, what in before.items() if not name.startswith("logs/")}
    assert files(server) == before
    assert (made.files, made.size_bytes) == (done.files, done.size_bytes) and done.files == len(after)
    assert whole(tmp_path / "new")
    everything = [tmp_path / "new", *(tmp_path / "new").rglob("*")]
    assert [path for path in everything if path.stat().st_mode & 0o077] == [], "other users can read what was restored"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.tar", "fed", "new"]


def test_a_database_at_work_is_whole_in_the_backup_with_all_that_was_committed(server: Path, tmp_path: Path) -> None:
    path = server / "flower.sqlite3"
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("CREATE TABLE t (x)")
        database.executemany("INSERT INTO t VALUES (?)", [(number,) for number in range(1000)])
        database.execute("BEGIN")
        database.execute("INSERT INTO t VALUES (-1)")  # not committed: another process is in the middle of it
        assert path.with_name("flower.sqlite3-wal").stat().st_size > 0
        backup(server, tmp_path / "b.tar")
    restore(tmp_path / "b.tar", tmp_path / "new")
    assert not list((tmp_path / "new").glob("*-wal"))
    with closing(sqlite3.connect(tmp_path / "new/flower.sqlite3")) as database:
        assert database.execute("SELECT count(*), min(x) FROM t").fetchone() == (1000, 0)
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_sites_survive(server: Path, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    form = serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    key = ec.generate_private_key(ec.SECP384R1()).public_key().public_bytes(*form).decode()
    Registry(server).add("north", key)
    Registry(server).end("north", "revoked")
    backup(server, tmp_path / "b.tar")
    restore(tmp_path / "b.tar", tmp_path / "new")
    assert Registry(tmp_path / "new").sites(revoked=True) == Registry(server).sites(revoked=True)
    with pytest.raises(UsageError, match="was revoked on"):
        Registry(tmp_path / "new").add("north", key)


def test_nothing_is_written_over(server: Path, tmp_path: Path) -> None:
    backup(server, tmp_path / "b.tar")
    with pytest.raises(UsageError, match="already exists"):
        backup(server, tmp_path / "b.tar")
    with pytest.raises(UsageError, match="is inside the folder"):
        backup(server, server / "b.tar")
    before = files(server)
    with pytest.raises(UsageError, match="is not empty"):
        restore(tmp_path / "b.tar", server)
    assert files(server) == before
    (tmp_path / "empty").mkdir()
    restore(tmp_path / "b.tar", tmp_path / "empty")
    assert whole(tmp_path / "empty")


# Files that were made to write elsewhere

Member = tuple[tarfile.TarInfo, bytes]


def member(name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, target: str = "") -> Member:
    header = tarfile.TarInfo(name)
    header.size, header.type, header.linkname, header.mode = len(content), kind, target, 0o777
    return header, content


def hostile(path: Path, members: list[Member], listed: list[Member] | None = None) -> Path:
    """A tar file with its list, which names `listed`, and then `members`."""
    entries = [
        {"path": header.name, "size": len(content), "mode": 0o600, "sha256": hashlib.sha256(content).hexdigest()}
        for header, content in [member("server.toml", CONFIG), *(members if listed is None else listed)]
    ]
    contents = json.dumps({"wardround_backup": 1, "made": "2026-01-01T00:00:00+00:00", "files": entries}).encode()
    with tarfile.open(path, "w") as archive:
        for header, content in [member(CONTENTS, contents), member("server.toml", CONFIG), *members]:
            archive.addfile(header, io.BytesIO(content))
    return path


OUTSIDE = "canary.txt"
HOSTILE: dict[str, Callable[[Path], tuple[list[Member], list[Member] | None]]] = {
    "an absolute path": lambda root: ([member(str(root / OUTSIDE), b"x")], None),
    "a way up": lambda root: ([member(f"../{OUTSIDE}", b"x")], None),
    "a way up inside": lambda root: ([member(f"a/../../{OUTSIDE}", b"x")], None),
    "a crooked name": lambda root: ([member("a//b", b"x")], None),
    "a link out, and a file through it": lambda root: (
        [member("out", kind=tarfile.SYMTYPE, target=str(root)), member(f"out/{OUTSIDE}", b"x")],
        [member(f"out/{OUTSIDE}", b"x")],
    ),
    "a listed link": lambda root: ([member("key", kind=tarfile.SYMTYPE, target=str(root / OUTSIDE))], None),
    "a hard link": lambda root: ([member("key", kind=tarfile.LNKTYPE, target="server.toml")], None),
    "a device": lambda root: ([member("null", kind=tarfile.CHRTYPE)], None),
    "a fifo": lambda root: ([member("pipe", kind=tarfile.FIFOTYPE)], None),
    "a folder": lambda root: ([member("folder", kind=tarfile.DIRTYPE)], None),
    "a file that is not listed": lambda root: ([member("more", b"x")], []),
    "a file twice": lambda root: ([member("a", b"x"), member("a", b"x")], [member("a", b"x")]),
    "a name listed twice": lambda root: ([member("a", b"x")], [member("a", b"x"), member("a", b"x")]),
    "other bytes": lambda root: ([member("a", b"y")], [member("a", b"x")]),
    "more bytes": lambda root: ([member("a", b"x" * 999)], [member("a", b"x")]),
    "a missing file": lambda root: ([], [member("a", b"x")]),
    "a file in a file": lambda root: ([member("a", b"x"), member("a/b", b"x")], None),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_tar_file_with(tmp_path: Path, what: str) -> None:
    """... is refused in one line, and neither the folder nor anything outside it is there afterwards."""
    members, listed = HOSTILE[what](tmp_path)
    file = hostile(tmp_path / "b.tar", members, listed)
    with pytest.raises(UsageError) as error:
        restore(file, tmp_path / "inner" / "new")
    assert "\n" not in str(error.value)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["b.tar", "inner"]


def test_the_same_tar_file_without_hostility_is_restored(tmp_path: Path) -> None:
    restore(hostile(tmp_path / "b.tar", [member("a/b", b"x")]), tmp_path / "new")
    assert (tmp_path / "new/a/b").read_bytes() == b"x"
    assert (tmp_path / "new/a/b").stat().st_mode & 0o777 == 0o600, "a mode came from the tar header"


@pytest.mark.parametrize("part", [0.0, 0.01, 0.1, 0.5, 0.9, 1.0])
def test_a_cut_file_restores_nothing(server: Path, tmp_path: Path, part: float) -> None:
    backup(server, tmp_path / "b.tar")
    with tarfile.open(tmp_path / "b.tar") as archive:
        last = archive.getmembers()[-1]
    content = (tmp_path / "b.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(content[: max(0, int(part * (last.offset_data + last.size)) - 1)])
    with pytest.raises(UsageError, match="not a backup|damaged|incomplete|contents"):
        restore(tmp_path / "cut.tar", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_tar_file_of_another_kind_is_no_backup(server: Path, tmp_path: Path) -> None:
    shutil.make_archive(str(tmp_path / "other"), "tar", server)
    with pytest.raises(UsageError, match="is not a backup made by wardround-server"):
        restore(tmp_path / "other.tar", tmp_path / "new")
