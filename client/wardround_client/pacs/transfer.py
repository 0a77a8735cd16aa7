"""The ways of fetching: C-MOVE to our own storage server, C-GET or WADO-RS, and the queries that belong to each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from wardround_client.pacs.dimse import (
    Activity,
    DicomFinder,
    OneAssociation,
    associated,
    get,
    get_contexts,
    move,
    move_contexts,
)
from wardround_client.pacs.node import Node, PacsError, Take
from wardround_client.pacs.query import Finder
from wardround_client.pacs.storage_server import Refusal, StorageServer, receiving

TOGETHER = 64  # objects of one request, if not the whole series is asked for


@dataclass(frozen=True, kw_only=True)
class Request:
    """Objects of one series. `sop_uids` is empty for the whole series. `classes` are their SOP classes, if known."""

    study_uid: str = field(repr=False)
    series_uid: str = field(repr=False)
    sop_uids: tuple[str, ...] = field(repr=False, default=())
    classes: frozenset[str] = frozenset()


class Transfer(Protocol):
    """Fetches objects; what comes goes to the `Take` that it was opened with."""

    def fetch(self, request: Request) -> None:
        """Fetch objects, and return when the PACS has finished. Raises `PacsError`."""


@contextmanager
def open_finder(node: Node, way: str, ends: float) -> Iterator[Finder]:
    """Open the queries that belong to a way of fetching. `ends` is when all waiting ends, on the monotonic clock."""
    if way == "web":
        from wardround_client.pacs.web.services import WebFinder

        with WebFinder(node, ends) as web:
            yield web
    else:
        with DicomFinder(node, ends) as dicom:
            yield dicom


@contextmanager
def open_transfer(node: Node, way: str, take: Take, ends: float) -> Iterator[Transfer]:
    """Open a way of fetching objects for as long as the block lasts.

    Args:
        node: The archive.
        way: "c-move", "c-get" or "web".
        take: Takes each object.
        ends: When all waiting ends, on the monotonic clock.
    """
    with ExitStack() as stack:
        if way == "web":
            from wardround_client.pacs.web.services import WebTransfer

            yield stack.enter_context(WebTransfer(node, take, ends))
        elif way == "c-get":
            yield stack.enter_context(_Get(node, take, ends))
        else:
            activity = Activity(ends)
            server = stack.enter_context(receiving(node, take, activity))
            yield stack.enter_context(_Move(node, server, activity))


class _Move(OneAssociation):
    def __init__(self, node: Node, server: StorageServer, activity: Activity) -> None:
        super().__init__()
        self._node, self._server, self._activity = node, server, activity

    def fetch(self, request: Request) -> None:
        before = self._server.refused.copy()
        self._server.accept(request.classes)
        try:
            association = self.held(associated(self._node, move_contexts(), self._activity))
            for identifiers in _identifiers(request):
                move(self._node, association, self._activity, identifiers)
        except PacsError:
            self.close()
            for refusal in Refusal:
                if self._server.refused[refusal] > before[refusal]:
                    raise self._node.error(f"the objects of the PACS were refused here: {refusal.value}") from None
            raise


class _Get(OneAssociation):
    def __init__(self, node: Node, take: Take, ends: float) -> None:
        super().__init__()
        self._node, self._take, self._activity = node, take, Activity(ends)
        self._classes: frozenset[str] | None = None

    def fetch(self, request: Request) -> None:
        if self._classes != request.classes:
            self.close()
            self._classes = request.classes
        contexts, roles = get_contexts(request.classes)
        try:
            opened = associated(self._node, contexts, self._activity, roles=roles, store=self._take)
            association = self.held(opened)
            for identifiers in _identifiers(request):
                get(self._node, association, self._activity, identifiers)
        except PacsError:
            self.close()
            raise


def _identifiers(request: Request) -> Iterable[dict[str, str | list[str]]]:
    base: dict[str, str | list[str]] = {
        "StudyInstanceUID": request.study_uid,
        "SeriesInstanceUID": request.series_uid,
    }
    if not request.sop_uids:
        yield base
    for group in _groups(request.sop_uids):
        yield {**base, "SOPInstanceUID": list(group)}


def _groups(sop_uids: Sequence[str]) -> Iterator[Sequence[str]]:
    for begin in range(0, len(sop_uids), TOGETHER):
        yield sop_uids[begin : begin + TOGETHER]
