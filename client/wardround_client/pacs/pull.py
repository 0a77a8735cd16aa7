"""Pull: objects of a PACS become files of a folder, complete or with the missing ones named, and resumable.

Studies are listed first. Then each study is listed and fetched series by series; what the manifest has is not asked
for again. After that the PACS is asked once more what each study has, because a study may have grown meanwhile. The
PACS is only read.
"""

from __future__ import annotations

import functools
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Protocol, TypeVar

from wardround.errors import WardroundError
from wardround_client.pacs.manifest import Manifest, Pulled, file_name, open_manifest
from wardround_client.pacs.node import Node, PacsError, UnreachableError
from wardround_client.pacs.pace import Pace, PacedFinder
from wardround_client.pacs.query import (
    Finder,
    FoundObjects,
    FoundSeries,
    FoundStudy,
    Wanted,
    find_objects,
    find_series,
    find_studies,
)
from wardround_client.pacs.receive import Receiver
from wardround_client.pacs.transfer import Request, Transfer, open_finder, open_transfer

PAUSES_S = (1.0, 5.0)  # before the second and the third attempt
AHEAD = 2  # studies that are listed before their objects are fetched
MOST_PASSES = 5  # over a study that keeps growing
MOST_FAILED = 3  # series in a row that could not be fetched at all: the PACS does not work
Progress = Callable[[str, int, int], None]
Answer = TypeVar("Answer")


@dataclass(frozen=True, kw_only=True)
class Order:
    """What to pull from where to where.

    Attributes:
        node: The archive.
        wanted: The request.
        folder: A new or empty folder, or that of an earlier pull.
        way: "c-move", "c-get" or "web".
        today: The last day of a request without one.
    """

    node: Node
    wanted: Wanted
    folder: Path
    way: str
    today: date


class Sink(Protocol):
    """Takes the files of complete studies out of the folder while further studies come."""

    @property
    def names(self) -> Collection[str]:
        """Names of the files that it has taken."""

    def take(self, names: Sequence[str]) -> None:
        """Take the files of a study. Called from a thread of its own, one study after the other."""


def pull(order: Order, pace: Pace, progress: Progress | None = None, sink: Sink | None = None) -> Pulled:
    """Pull what is wanted into a folder.

    Args:
        order: What to pull.
        pace: The bandwidth, the hours and the time limit.
        progress: Called as `progress(stage, done, total)`.
        sink: Takes complete studies out of the folder.

    Raises:
        UsageError: The settings, the folder or its manifest cannot be used.
        PolicyRefusal: Nothing may be pulled at this time of day.
        PacsError: The studies cannot be listed.
    """
    node, way = order.node, order.way
    with open_manifest(order.folder, () if sink is None else sink.names) as manifest:
        receiver = Receiver(manifest, pace.took)
        work = _Work(order=order, manifest=manifest, receiver=receiver, pace=pace, progress=progress, sink=sink)
        try:
            pace.begin()
            manifest.asked(node.name, way, order.wanted.to_json())
            ends = pace.ends
            with open_finder(node, way, ends) as finder, open_transfer(node, way, receiver.take, ends) as transfer:
                return work.run(PacedFinder(finder, pace), transfer)
        finally:
            with suppress(WardroundError):  # the disk's error was raised before, if there was one
                receiver.flush()  # of a call that is stopped
            receiver.close()
            work.taker.shutdown()


@dataclass(kw_only=True)
class _Work:
    """The state of one pull."""

    order: Order
    manifest: Manifest
    receiver: Receiver
    pace: Pace
    progress: Progress | None
    sink: Sink | None
    taker: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="pull-sink"))
    taking: deque[Future[None]] = field(default_factory=deque)
    listed: dict[str, tuple[FoundSeries, FoundObjects]] = field(default_factory=dict)  # by series
    before: int = 0
    cut_studies: set[str] = field(default_factory=set)  # of which the PACS lists fewer series than they have
    reached: int = 0  # studies
    failed_in_a_row: int = 0
    last_error: str = ""
    grows: bool = False

    def run(self, finder: Finder, transfer: Transfer) -> Pulled:
        found = self.with_retries(lambda: find_studies(finder, self.order.wanted, self.order.today))
        stopped = ""
        try:
            changed = list(found.studies)
            for _ in range(MOST_PASSES):
                self.reached = len(found.studies) - len(changed)
                changed = self.fetch_pass(finder, transfer, changed)
                if not changed:
                    break
            self.grows = bool(changed)
        except WardroundError as error:
            stopped = str(error)
        self.receiver.flush()
        while self.taking:
            self.taking.popleft().result()
        missing = self.missing()
        counts = self.receiver.counts
        remarks = list(found.remarks)
        if self.cut_studies:
            remarks.append(
                f"studies with more series than the PACS lists: {len(self.cut_studies):,}; raise its limit of results"
            )
        if self.reached < len(found.studies):
            remarks.append(f"studies that were not reached: {len(found.studies) - self.reached:,}")
        if self.grows:
            remarks.append("a study was still growing when this call ended; run the same command later")
        if missing and self.last_error and not stopped:
            remarks.append(self.last_error)
        made = Pulled(
            studies=len(found.studies),
            series=len(self.listed),
            objects=sum(self.expected(series, objects) for series, objects in self.listed.values()),
            came=counts["came"],
            before=self.before,
            missing=missing,
            duplicates=counts["duplicate"],
            unasked=counts["unasked"],
            damaged=counts["damaged"],
            unmatched_rows=found.unmatched_rows,
            remarks=tuple(remarks),
            incomplete=found.incomplete or bool(self.cut_studies) or self.grows,
            stopped=stopped,
        )
        self.manifest.ended(
            {"came": made.came, "missing": made.missing, "unasked": made.unasked, "damaged": made.damaged},
            {series.uid: self.missing_of(objects) for series, objects in self.listed.values()},
        )
        return made

    def fetch_pass(self, finder: Finder, transfer: Transfer, studies: Sequence[FoundStudy]) -> list[FoundStudy]:
        """List and fetch studies. Returns those that have more now than when they were listed.

        One thread asks what the next study has, and what the last one has now, while the objects of a study come.
        """
        grown: list[Future[bool]] = []
        lister = ThreadPoolExecutor(1, thread_name_prefix="pull-lister")
        try:
            ahead = deque(lister.submit(self.list_study, finder, study) for study in studies[:AHEAD])
            for number, study in enumerate(studies):
                self.report(number, len(studies))
                listed = ahead.popleft().result()
                for series, objects in listed:
                    self.fetch_series(transfer, series, objects)
                self.reached += 1
                self.hand_over([objects for _, objects in listed])
                grown.append(lister.submit(self.has_grown, finder, study))
                if number + AHEAD < len(studies):
                    ahead.append(lister.submit(self.list_study, finder, studies[number + AHEAD]))
            self.report(len(studies), len(studies))
            return [study for study, more in zip(studies, grown, strict=True) if more.result()]
        finally:
            lister.shutdown(cancel_futures=True)

    def list_study(self, finder: Finder, study: FoundStudy) -> list[tuple[FoundSeries, FoundObjects]]:
        """Return the series of a study that are new or have changed since they were listed last, with their objects."""
        self.pace.begin()
        series, complete = self.with_retries(lambda: find_series(finder, study, self.order.wanted))
        if not complete:
            self.cut_studies.add(study.uid)
        new = []
        for one in series:
            if self.is_as_listed(one):
                continue
            objects = self.with_retries(functools.partial(find_objects, finder, one))
            if one.uid not in self.listed:
                self.before += sum(sop in self.manifest for sop in objects.classes)
            self.listed[one.uid] = (one, objects)
            new.append((one, objects))
        return new

    def has_grown(self, finder: Finder, study: FoundStudy) -> bool:
        """Return whether a study has more than when it was listed."""
        series, _ = self.with_retries(lambda: find_series(finder, study, self.order.wanted))
        for one in series:
            if self.is_as_listed(one):
                continue
            if one.uid not in self.listed or one.count is not None:
                return True
            objects = self.with_retries(functools.partial(find_objects, finder, one))
            if not set(objects.classes) <= set(self.listed[one.uid][1].classes):
                return True
        return False

    def is_as_listed(self, series: FoundSeries) -> bool:
        """Return whether the PACS counts as many objects of a series as when it was listed."""
        known = self.listed.get(series.uid)
        return known is not None and series.count is not None and series.count == known[0].count

    def hand_over(self, objects: Sequence[FoundObjects]) -> None:
        """Give the files of a study to the sink, if all of them came. At most `AHEAD` studies wait for it."""
        if self.sink is None or any(self.missing_of(one) for one in objects):
            return
        self.receiver.flush()
        names = [file_name(sop) for one in objects for sop in one.classes]
        self.taking.append(self.taker.submit(self.sink.take, names))
        while len(self.taking) > AHEAD:
            self.taking.popleft().result()

    def fetch_series(self, transfer: Transfer, series: FoundSeries, objects: FoundObjects) -> None:
        """Fetch what is missing of a series, in up to three attempts."""
        self.receiver.expect(series.uid, objects.classes, whole_series=not objects.whole)
        for pause_s in (0.0, *PAUSES_S):
            missing = self.missing_of(objects)
            if not missing and self.count_of(series, objects) >= self.expected(series, objects):
                break
            time.sleep(pause_s)
            self.pace.begin()
            few = objects.whole and len(missing) < len(objects.classes) and pause_s < PAUSES_S[-1]
            request = Request(
                study_uid=series.study_uid,
                series_uid=series.uid,
                sop_uids=tuple(missing) if few else (),
                classes=frozenset(objects.classes.values()) - {""},
            )
            before = self.receiver.counts["came"]
            unreachable = False
            try:
                transfer.fetch(request)
            except PacsError as error:
                self.last_error = str(error)
                unreachable = isinstance(error, UnreachableError)
            self.receiver.raise_failure()
            self.failed_in_a_row = 0 if self.receiver.counts["came"] > before else self.failed_in_a_row
        else:
            if self.missing_of(objects):
                self.failed_in_a_row += 1
            if unreachable or self.failed_in_a_row >= MOST_FAILED or self.pace.is_over():
                raise PacsError(self.last_error or f"{self.order.node.name}: the PACS sends nothing")

    def with_retries(self, ask: Callable[[], Answer]) -> Answer:
        """Ask up to three times. Raises the last `PacsError`."""
        for pause_s in PAUSES_S:
            try:
                return ask()
            except PacsError:
                if self.pace.is_over():
                    raise
                time.sleep(pause_s)
                self.pace.begin()
        return ask()

    def missing_of(self, objects: FoundObjects) -> list[str]:
        return [sop for sop in objects.classes if not self.receiver.has(sop)]

    def count_of(self, series: FoundSeries, objects: FoundObjects) -> int:
        """Return how many objects of a series came. A list that is not whole is counted by the series."""
        if objects.whole:
            return len(objects.classes) - len(self.missing_of(objects))
        return self.receiver.count_of(series.uid)

    def expected(self, series: FoundSeries, objects: FoundObjects) -> int:
        return len(objects.classes) if objects.whole else max(series.count or 0, len(objects.classes))

    def missing(self) -> int:
        return sum(
            max(0, self.expected(series, objects) - self.count_of(series, objects))
            for series, objects in self.listed.values()
        )

    def report(self, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress("studies", done, total)
