"""The manifest of a pull: what was asked, what the PACS lists, and what came. One file of JSON lines beside the folder.

A line `came` is written after its file is durable, so that an object in the manifest is on disk after any crash. An
object on disk that is not in the manifest is asked for again and replaces its own file, because a file's name is made
from the hash of the object's UID. The file contains UIDs, so it is readable by its owner only and stays at the site.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from wardround.errors import UsageError
from wardround.storage.disk_errors import unwritable, writing
from wardround.storage.folders import make_folder
from wardround.storage.jsonl import append_lines, read_lines, trim_lines
from wardround.storage.locks import try_locked
from wardround.storage.text_file import path_text
from wardround.text import count_text

SUFFIX = ".pull.jsonl"
ASKED, CAME, ENDED, MISSING = "asked", "came", "ended", "missing"
HEX_OF_A_NAME = 40
PARTIAL = ".partial"
MOST_ROWS_SHOWN = 20


@dataclass(frozen=True, kw_only=True)
class ReceivedObject:
    """An object that is on disk."""

    sop_uid: str = field(repr=False)
    series_uid: str = field(repr=False)
    file: str
    sha256: str
    size: int

    def to_json(self) -> dict[str, Any]:
        return {
            "what": CAME,
            "sop": self.sop_uid,
            "series": self.series_uid,
            "file": self.file,
            "sha256": self.sha256,
            "bytes": self.size,
        }


@dataclass(frozen=True, kw_only=True)
class Pulled:
    """How a pull ended.

    Attributes:
        studies, series: How many matched.
        objects: Objects that the PACS lists in them.
        came: Objects that were received now.
        before: Objects of them that an earlier call had pulled.
        missing: Objects that the PACS lists and that did not come.
        duplicates, unasked, damaged: Objects that were sent and not kept: twice, not asked for, unreadable.
        unmatched_rows: Rows of the user's list that match no study.
        remarks: What the user should know.
        incomplete: Whether the list of studies or series itself is known to be incomplete.
        stopped: Why the call ended early, or "".
    """

    studies: int
    series: int
    objects: int
    came: int
    before: int
    missing: int
    duplicates: int
    unasked: int
    damaged: int
    unmatched_rows: tuple[int, ...]
    remarks: tuple[str, ...]
    incomplete: bool
    stopped: str

    @property
    def complete(self) -> bool:
        """Whether everything that matched is in the folder."""
        return not (self.missing or self.incomplete or self.stopped)

    def to_json(self) -> dict[str, Any]:
        """Return plain values for `--json`."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {**values, "complete": self.complete}


class Manifest:
    """The manifest of one folder. `open_manifest` opens it for one process at a time."""

    def __init__(self, folder: Path, path: Path, came: dict[str, str]) -> None:
        self.folder, self.path = folder, path
        self._series_of = came

    def __contains__(self, sop_uid: str) -> bool:
        return sop_uid in self._series_of

    def __len__(self) -> int:
        return len(self._series_of)

    def of_series(self, series_uid: str) -> set[str]:
        """Return the UIDs of the objects of a series that came."""
        return {sop for sop, series in self._series_of.items() if series == series_uid}

    def asked(self, node: str, way: str, wanted: Mapping[str, Any]) -> None:
        """Record what this call asks for."""
        self._append([{"what": ASKED, "at": _now(), "node": node, "way": way, **wanted}])

    def came(self, objects: Iterable[ReceivedObject]) -> None:
        """Record objects whose files are durable."""
        those = list(objects)
        self._append([one.to_json() for one in those])
        self._series_of.update({one.sop_uid: one.series_uid for one in those})

    def ended(self, counts: Mapping[str, int], missing: Mapping[str, list[str]]) -> None:
        """Record how a call ended, and the UIDs that are missing by series."""
        named = [{"what": MISSING, "series": series, "sop": uids} for series, uids in missing.items() if uids]
        self._append([{"what": ENDED, "at": _now(), **counts}, *named])

    def _append(self, records: list[dict[str, Any]]) -> None:
        with writing(self.path):
            append_lines(self.path, records)


def file_name(sop_uid: str) -> str:
    """Return the name of an object's file: never a text from the network, and the same each time."""
    return f"{hashlib.sha256(sop_uid.encode()).hexdigest()[:HEX_OF_A_NAME]}.dcm"


def manifest_path(folder: Path) -> Path:
    """Return the path of a folder's manifest, beside it."""
    return folder.with_name(f"{folder.name}{SUFFIX}")


def lock_path(folder: Path) -> Path:
    """Return the path of the lock that a pull into a folder holds."""
    return folder.with_name(f".{folder.name}{SUFFIX}.lock")


@contextmanager
def open_manifest(folder: Path, elsewhere: Collection[str] = ()) -> Iterator[Manifest]:
    """Open the manifest of a folder, which is created if it is missing, and hold its lock.

    Args:
        folder: The folder of the objects.
        elsewhere: Names of files that came and were removed from the folder on purpose.

    Raises:
        UsageError: The folder contains other files, its manifest is damaged, it cannot be written, or another pull
            works on it.
    """
    folder = folder.resolve()
    path = manifest_path(folder)
    try:
        foreign = folder.exists() and any(not file.name.startswith(".") for file in folder.iterdir())
        if foreign and not path.exists():
            raise UsageError(f"{path_text(folder)}: contains other files; choose a new or an empty folder")
        make_folder(folder)
        with try_locked(lock_path(folder)) as alone:
            if not alone:
                raise UsageError(f"{path_text(folder)}: another pull is working on it; wait until it has ended")
            yield _opened(folder, path, elsewhere)
    except OSError as error:
        raise unwritable(folder, error) from None


def _opened(folder: Path, path: Path, elsewhere: Collection[str]) -> Manifest:
    try:
        records = read_lines(path)
    except ValueError as error:
        raise UsageError(f"{path_text(path)}: {error}; put it back from a backup, or pull into a new folder") from None
    if path.exists():
        trim_lines(path, records)
    there = set(elsewhere)
    for file in folder.iterdir():
        if file.name.startswith(".") and file.name.endswith(PARTIAL):
            file.unlink()  # of a call that was killed
        else:
            there.add(file.name)
    lines = [one for one in records if one.get("what") == CAME]
    if not all(_is_whole(one) for one in lines):
        raise UsageError(
            f"{path_text(path)}: a line of an object is damaged; put it back from a backup, or pull into a new folder"
        )
    came = {one["sop"]: one["series"] for one in lines if one["file"] in there}
    manifest = Manifest(folder, path, came)
    if not path.exists():
        manifest._append([])
    return manifest


def _is_whole(line: Mapping[str, Any]) -> bool:
    """Return whether a line names an object, its series and its own file."""
    sop, series, file = (line.get(key) for key in ("sop", "series", "file"))
    return isinstance(sop, str) and sop.isascii() and isinstance(series, str) and file == file_name(sop)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def summary_of(pulled: Pulled) -> list[str]:
    """Return the result in lines for people."""
    studies = f"{pulled.studies:,} matching {'study' if pulled.studies == 1 else 'studies'}"
    lines = [
        f"{studies} with {pulled.series:,} matching series and {count_text(pulled.objects, 'object')}: "
        f"{pulled.came:,} received now, {pulled.before:,} already in the folder, {pulled.missing:,} missing"
    ]
    dropped = {"received again": pulled.duplicates, "not asked for": pulled.unasked, "not readable": pulled.damaged}
    if any(dropped.values()):
        parts = [f"{count_text(count, 'object')} {why}" for why, count in dropped.items() if count]
        lines.append(f"Not kept: {', '.join(parts)}")
    if pulled.unmatched_rows:
        shown = ", ".join(map(str, pulled.unmatched_rows[:MOST_ROWS_SHOWN]))
        more = "" if len(pulled.unmatched_rows) <= MOST_ROWS_SHOWN else ", …"
        rows = len(pulled.unmatched_rows)
        numbers = f"{'row' if rows == 1 else 'rows'} {shown}{more}"
        lines.append(f"The PACS has no study for {count_text(rows, 'row')} of the list ({numbers})")
    lines += pulled.remarks
    if pulled.missing:
        lines.append("The manifest beside the folder names what is missing; run the same command to fetch it")
    return lines
