"""Received objects become files: checked against what was asked, written as they came, durable, then in the manifest.

An object is written under a temporary name, fsynced and renamed, mode 0600. This happens in groups, because each fsync
costs as much as receiving an object; a slow disk makes the groups larger. What a crash loses is asked for again.
"""

from __future__ import annotations

import hashlib
import io
import os
import threading
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pydicom
from pydicom import Dataset
from pydicom.filereader import read_dataset, read_preamble
from pydicom.tag import BaseTag, Tag
from pydicom.uid import DeflatedExplicitVRLittleEndian

from wardround.errors import WardroundError, required
from wardround.storage.atomic import OWNER_ONLY, fsync
from wardround.storage.disk_errors import unwritable
from wardround_client.pacs.identifiers import is_uid
from wardround_client.pacs.manifest import PARTIAL, Manifest, ReceivedObject, file_name

GROUP, GROUP_BYTES, GROUP_S = 64, 64 * 2**20, 2.0  # what is made durable together, at least
MOST_WAITING, MOST_WAITING_BYTES = 1024, 256 * 2**20  # what may come while the group before is made durable
SYNCED_AT_ONCE = 16  # fsyncs at the same time share the commits of the file system's journal: 20 times as fast on ext4
MOST_INFLATED = 2**20  # of a deflated object, to identify it: a bomb of 1 MB inflates to 1 GB
_NAMES = ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
_LAST = max(map(Tag, _NAMES))


@dataclass(frozen=True, kw_only=True)
class _Written:
    received: ReceivedObject
    partial: Path = field(repr=False)


class Receiver:
    """Takes objects from any thread, and keeps those that were asked for.

    Args:
        manifest: The manifest of the folder.
        took: Called with the size of each object that was kept, in bytes; it may sleep.

    Attributes:
        counts: By outcome: `came`, `duplicate`, `unasked`, `damaged`.
    """

    def __init__(self, manifest: Manifest, took: Callable[[int], None] = lambda size: None) -> None:
        self._manifest, self._took = manifest, took
        self._lock = threading.Lock()
        self._expected: dict[str, str] = {}  # series by SOP Instance UID
        self._open_series: set[str] = set()  # series whose objects the PACS does not list in full
        self._group: list[_Written] = []
        self._group_began, self._group_bytes = 0.0, 0
        self._under_way: dict[str, str] = {}  # series by UID: written or being written, not yet in the manifest
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="pull-writer")
        self._syncers = ThreadPoolExecutor(SYNCED_AT_ONCE, thread_name_prefix="pull-sync")
        self._writing: Future[None] | None = None
        self._failed: WardroundError | None = None
        self.counts: Counter[str] = Counter()

    def expect(self, series_uid: str, sop_uids: Iterable[str], *, whole_series: bool = False) -> None:
        """Accept these objects of a series from now on, or every object of it, besides what was expected before.

        What a PACS still sends after a request has failed is welcome.
        """
        with self._lock:
            self._expected.update(dict.fromkeys(sop_uids, series_uid))
            if whole_series:
                self._open_series.add(series_uid)

    def take(self, content: bytes) -> bool:
        """Take an object in the DICOM file format. Returns whether its sender may consider it stored.

        Raises nothing: an error of the disk is raised by `flush`.
        """
        identity = _identity(content)
        if identity is None:
            with self._lock:
                self.counts["damaged"] += 1
            return False
        sop_uid, series_uid = identity
        with self._lock:
            if self._failed is not None:
                return False
            asked = self._expected.get(sop_uid) == series_uid or series_uid in self._open_series
            known = sop_uid in self._manifest or sop_uid in self._under_way
            if known or not asked:
                self.counts["duplicate" if known else "unasked"] += 1
                return known
            self._under_way[sop_uid] = series_uid
        name = file_name(sop_uid)
        partial = self._manifest.folder / f".{name}{PARTIAL}"
        try:
            partial.unlink(missing_ok=True)
            with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, OWNER_ONLY), "wb") as file:
                file.write(content)
        except OSError as error:
            with self._lock:
                self._under_way.pop(sop_uid, None)
                self._failed = unwritable(self._manifest.folder, error)
            return False
        received = ReceivedObject(
            sop_uid=sop_uid,
            series_uid=series_uid,
            file=name,
            sha256=hashlib.sha256(content).hexdigest(),
            size=len(content),
        )
        with self._lock:
            if not self._group:
                self._group_began = time.monotonic()
            self._group.append(_Written(received=received, partial=partial))
            self._group_bytes += len(content)
            self.counts["came"] += 1
            full = (
                len(self._group) >= GROUP
                or self._group_bytes >= GROUP_BYTES
                or time.monotonic() - self._group_began > GROUP_S
            )
            idle = self._writing is None or self._writing.done()
            if full and (idle or self._group_bytes >= MOST_WAITING_BYTES or len(self._group) >= MOST_WAITING):
                self._hand_over()
        self._took(len(content))
        return True

    def has(self, sop_uid: str) -> bool:
        """Return whether an object came, durable or not."""
        return sop_uid in self._manifest or sop_uid in self._under_way

    def count_of(self, series_uid: str) -> int:
        """Return how many objects of a series came, durable or not."""
        under_way = {sop for sop, series in list(self._under_way.items()) if series == series_uid}
        return len(self._manifest.of_series(series_uid) | under_way)

    def raise_failure(self) -> None:
        """Raise the error of the disk, if there was one."""
        if self._failed is not None:
            raise self._failed

    def flush(self) -> None:
        """Make everything durable that was taken. Raises the `WardroundError` of the disk if that was not possible."""
        with self._lock:
            self._hand_over()
            last, self._writing = self._writing, None
        if last is not None:
            last.result()
        self.raise_failure()

    def close(self) -> None:
        """End the threads that write."""
        self._writer.shutdown()
        self._syncers.shutdown()

    def _hand_over(self) -> None:
        """Give the group to the writing thread, after it has finished the one before. The lock is held."""
        if self._writing is not None:
            self._writing.result()
            self._writing = None
        group, self._group, self._group_bytes = self._group, [], 0
        if group:
            self._writing = self._writer.submit(self._settle, group)

    def _settle(self, group: list[_Written]) -> None:
        folder = self._manifest.folder
        try:
            list(self._syncers.map(fsync, [one.partial for one in group]))
            for one in group:
                os.replace(one.partial, folder / one.received.file)
            fsync(folder)
            self._manifest.came(one.received for one in group)
            for one in group:
                self._under_way.pop(one.received.sop_uid, None)
        except OSError as error:
            self._failed = unwritable(folder, error)
        except WardroundError as error:
            self._failed = error


def _identity(content: bytes) -> tuple[str, str] | None:
    """Return the UIDs of an object and of its series, or None if it cannot be read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            header = _header(content)
            sop_uid, _, series_uid = (str(required(_text(header, name), name)) for name in _NAMES)
    except Exception:  # pydicom raises almost anything for a damaged header
        return None
    return (sop_uid, series_uid) if is_uid(sop_uid) and is_uid(series_uid) else None


def _header(content: bytes) -> Dataset:
    """Return what identifies an object. Of a deflated one, no more than `MOST_INFLATED` bytes are inflated."""
    file = io.BytesIO(content)
    read_preamble(file, force=False)
    meta = read_dataset(file, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 2)  # as `dcmread` reads it
    _ = [meta[tag] for tag in list(meta.keys())[:1]]  # raises if it is not explicit, which `dcmread` would forgive
    if meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
        return pydicom.dcmread(io.BytesIO(content), stop_before_pixels=True, specific_tags=list(_NAMES))
    with memoryview(content) as view:
        begun = zlib.decompressobj(-zlib.MAX_WBITS).decompress(view[file.tell() :], MOST_INFLATED)
    tags: list[BaseTag | int] = [Tag(name) for name in _NAMES]
    return read_dataset(
        io.BytesIO(begun), False, True, stop_when=lambda tag, vr, length: tag > _LAST, specific_tags=tags
    )


def _text(header: Dataset, name: str) -> str | None:
    value = header.get(name)
    return None if value is None else str(value)
