"""Back up a server's folder as one tar file and restore it, for example on a new machine or after a disk failure.

The first member of the tar lists all others with size, mode and SHA-256. `restore` writes only regular files that match
this list and lie inside the folder; the folder appears in one rename after every hash was verified. SQLite files are
copied through SQLite's backup API, so that the copy of a database in use is consistent too.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import sqlite3
import stat
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import IO, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from wardround.errors import UsageError, WardroundError
from wardround.identity import SHA256
from wardround.storage.atomic import fsync, owner_only, partial_path
from wardround.storage.disk_errors import cause
from wardround.storage.folders import make_folder
from wardround_server.operations.paths import CONFIG_FILE, LOGS

CONTENTS = "wardround-backup.json"
CONTENTS_BYTES = 64 * 2**20
SQLITE_BEGINS = b"SQLite format 3\0"
SQLITE_BESIDE = ("-wal", "-shm", "-journal")
_PIECE = 1 << 20


class BackedUp(BaseModel):
    """One file of a backup."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    path: Annotated[str, Field(min_length=1, max_length=1000)]
    size: Annotated[int, Field(ge=0)]
    mode: Annotated[int, Field(ge=0, le=0o777)]
    sha256: Annotated[str, Field(pattern=SHA256)]


class Contents(BaseModel):
    """The list at the beginning of a backup."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    wardround_backup: Literal[1] = 1
    made: str
    files: list[BackedUp]


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """The result of a backup or restore: number of files, bytes, and when the backup was made (ISO 8601, UTC)."""

    files: int
    size_bytes: int
    made: str


def backup(folder: Path, file: Path) -> Transfer:
    """Write the folder without its logs to a new tar file (mode 0600, because it contains the private keys).

    The file appears under its name only when it is complete. Raises `UsageError` if the file exists already or lies
    inside the folder, and `WardroundError` if anything cannot be read or written.
    """
    if file.exists():
        raise UsageError(f"{file}: already exists and is not replaced; choose another name")
    if file.resolve().is_relative_to(folder.resolve()):
        raise UsageError(f"{file}: is inside the folder that is backed up; choose a file outside it")
    partial = partial_path(file)
    try:
        with tempfile.TemporaryDirectory(prefix=".wardround-backup-", dir=file.parent) as temporary:
            copies = list(_copies(folder, Path(temporary)))
            listed = [_listed(name, path) for name, path in copies]
            contents = Contents(made=datetime.now(UTC).isoformat(timespec="seconds"), files=listed)
            # Streamed because the backup may exceed the memory; otherwise the same steps as in `write_file`.
            with open(partial, "wb", opener=owner_only) as raw, tarfile.open(fileobj=raw, mode="w") as archive:
                _add(archive, CONTENTS, contents.model_dump_json(indent=1).encode())
                for entry, (_, path) in zip(listed, copies, strict=True):
                    _add_file(archive, entry, path)
                archive.close()
                raw.flush()
                os.fsync(raw.fileno())
        os.rename(partial, file)
        fsync(file.parent)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise WardroundError(f"{error.filename or file}: cannot be backed up: {cause(error)}") from None
    return Transfer(files=len(listed), size_bytes=sum(entry.size for entry in listed), made=contents.made)


def restore(file: Path, folder: Path) -> Transfer:
    """Write a backup into a new or empty folder.

    Raises `UsageError` for a folder that is not empty and for a file that is not a backup, is damaged, or tries to
    write elsewhere (absolute paths, `..`, links, devices, files that are not listed or differ from the list). In these
    cases nothing is left behind.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder}: is not empty; choose a new or empty folder")
    partial = folder.parent / f".{folder.name}.restoring"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)  # left by an attempt that was killed
        partial.mkdir(mode=0o700)
        with tarfile.open(file, mode="r:") as archive:
            contents = _contents(archive, file)
            _write_all(archive, contents, partial, file)
        os.rename(partial, folder)
        fsync(folder.parent)
    except tarfile.TarError:
        raise UsageError(f"{file}: is not a backup or is damaged; use another backup") from None
    except OSError as error:
        raise UsageError(f"{error.filename or file}: cannot be restored: {cause(error)}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Transfer(files=len(contents.files), size_bytes=sum(e.size for e in contents.files), made=contents.made)


def _copies(folder: Path, temporary: Path) -> Iterator[tuple[str, Path]]:
    """Yield (name in the backup, file to read): the file itself, or a snapshot of a database."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if name.parts[0] == LOGS or path.is_symlink() or not path.is_file():
            continue
        if path.name.startswith(".") or path.name.endswith(SQLITE_BESIDE):
            continue  # unfinished files, locks, and the side files of a database in use
        if _is_database(path):
            snapshot = temporary / f"{len(list(temporary.iterdir()))}.sqlite3"
            _snapshot(path, snapshot)
            path = snapshot
        yield name.as_posix(), path


def _is_database(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(len(SQLITE_BEGINS)) == SQLITE_BEGINS


def _snapshot(path: Path, snapshot: Path) -> None:
    """Write a consistent copy of a database that other processes may be writing to."""
    snapshot.touch(mode=0o600)
    try:
        with closing(sqlite3.connect(path, timeout=10)) as source, closing(sqlite3.connect(snapshot)) as target:
            source.backup(target)
    except sqlite3.Error as error:
        raise WardroundError(f"{path}: cannot be backed up: {error}") from None
    snapshot.chmod(stat.S_IMODE(path.stat().st_mode))


def _listed(name: str, path: Path) -> BackedUp:
    with open(path, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        size = file.tell()
    return BackedUp(path=name, size=size, mode=stat.S_IMODE(path.stat().st_mode), sha256=sha256)


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    header = tarfile.TarInfo(name)
    header.size, header.mode = len(content), 0o600
    archive.addfile(header, io.BytesIO(content))


def _add_file(archive: tarfile.TarFile, entry: BackedUp, path: Path) -> None:
    header = tarfile.TarInfo(entry.path)
    header.size, header.mode = entry.size, entry.mode
    with open(path, "rb") as source:
        if os.fstat(source.fileno()).st_size < entry.size:
            raise WardroundError(f"{path}: changed during the backup; run `wardround-server backup` again")
        archive.addfile(header, source)


def _contents(archive: tarfile.TarFile, file: Path) -> Contents:
    first = archive.next()
    if first is None or first.name != CONTENTS or not first.isreg() or first.size > CONTENTS_BYTES:
        raise UsageError(f"{file}: is not a backup made by wardround-server; use another file")
    try:
        contents = Contents.model_validate_json(_opened(archive, first).read())
    except ValidationError:
        raise UsageError(f"{file}: the list of contents is damaged; use another backup") from None
    names = [entry.path for entry in contents.files]
    for name in names:
        parts = PurePosixPath(name).parts
        if "\0" in name or ".." in parts or name != "/".join(parts):  # the last test also catches absolute names
            raise UsageError(
                f"{file}: the backup lists a file outside its folder; nothing was restored; use another backup"
            )
    if len(set(names)) != len(names) or CONFIG_FILE not in names:
        raise UsageError(f"{file}: the list of contents is not that of a server's folder; use another backup")
    return contents


def _write_all(archive: tarfile.TarFile, contents: Contents, target: Path, file: Path) -> None:
    expected = {entry.path: entry for entry in contents.files}
    while (member := archive.next()) is not None:
        entry = expected.pop(member.name, None)
        if entry is None or not member.isreg() or member.size != entry.size:
            raise UsageError(f"{file}: the backup contains an unlisted file; nothing was restored; use another backup")
        path = target / entry.path
        make_folder(path.parent)
        if _copy(_opened(archive, member), path, entry.mode) != entry.sha256:
            raise UsageError(f"{file}: one of its files is damaged; nothing was restored; use another backup")
    if expected:
        raise UsageError(
            f"{file}: is incomplete, {len(expected)} files are missing; nothing was restored; use another backup"
        )


def _opened(archive: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    opened = archive.extractfile(member)
    if opened is None:
        raise tarfile.TarError
    return opened


def _copy(source: IO[bytes], path: Path, mode: int) -> str:
    """Write one file of an untrusted backup, never through a link or over a file; return its SHA-256."""
    digest = hashlib.sha256()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode & 0o700)
    with os.fdopen(descriptor, "wb") as target:
        while piece := source.read(_PIECE):
            digest.update(piece)
            target.write(piece)
        target.flush()
        os.fsync(target.fileno())
    return digest.hexdigest()
