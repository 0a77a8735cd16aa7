"""DICOM over its own network protocol: queries (C-FIND), transfers (C-MOVE, C-GET), storing (C-STORE), echo.

One association stays open for many requests and is opened again after a failure. Waiting ends when nothing has been
received for `timeout_s`, on this association or on that of the objects; a long transfer is not interrupted. pynetdicom
reports a lost association as a status without a value, so every status is checked for one.
"""

from __future__ import annotations

import math
import queue
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Self

from pydicom import Dataset
from pydicom.uid import UID, AllTransferSyntaxes
from pynetdicom import AE, _config, evt
from pynetdicom.association import Association
from pynetdicom.pdu_primitives import SCP_SCU_RoleSelectionNegotiation
from pynetdicom.presentation import AllStoragePresentationContexts, PresentationContext, build_context, build_role
from pynetdicom.sop_class import (  # type: ignore[attr-defined]  # made when the module is loaded
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
    Verification,
)

from wardround.operations.tls_probe import split_address
from wardround_client.pacs.node import Node, PacsError, Row, Rows, Take, UnreachableError, client_tls

_config.LOG_HANDLER_LEVEL = "none"  # its log would contain identifiers of patients, and costs time for each message
FIND = StudyRootQueryRetrieveInformationModelFind
MOVE = StudyRootQueryRetrieveInformationModelMove
GET = StudyRootQueryRetrieveInformationModelGet
PENDING = (0xFF00, 0xFF01)
SUCCESS = 0x0000
CUT_SHORT = (0xFE00, 0xA700)  # of a C-FIND: there are more matches than the PACS returns
MOVE_DESTINATION_UNKNOWN = 0xA801
MOST_ROWS = 1_000_000  # of one C-FIND; the largest archives have some million studies in all
MOST_CONTEXTS = 128  # of one association (PS3.8 9.3.2.2)
LARGEST_PDU = 2**18
POLL_S = 0.5
CONNECT_S, LEAST_ACSE_S, ACSE_S = 10.0, 5.0, 15.0  # the last two for the reply to a request for an association
USUAL_CLASSES = (  # asked for with C-GET if the PACS does not say what a series contains: CT, MR, CR, DX, MG, US, SC
    *("1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.1"),
    *("1.2.840.10008.5.1.4.1.1.1.1", "1.2.840.10008.5.1.4.1.1.1.2", "1.2.840.10008.5.1.4.1.1.6.1"),
    "1.2.840.10008.5.1.4.1.1.7",
)
SYNTAXES: list[str | UID] = [
    syntax for syntax in AllTransferSyntaxes if "MPEG" not in syntax.name and "HEVC" not in syntax.name
]


class Activity:
    """When something was last received, on any connection of a transfer.

    `ends` is when all waiting ends, on the monotonic clock.
    """

    def __init__(self, ends: float) -> None:
        self._last, self._ends = time.monotonic(), ends

    def touch(self, event: evt.Event | None = None) -> None:
        self._last = time.monotonic()

    @property
    def is_over(self) -> bool:
        return time.monotonic() > self._ends

    @property
    def idle_s(self) -> float:
        return math.inf if self.is_over else time.monotonic() - self._last


@contextmanager
def associated(
    node: Node,
    contexts: Sequence[PresentationContext],
    activity: Activity,
    *,
    roles: Sequence[SCP_SCU_RoleSelectionNegotiation] = (),
    store: Take | None = None,
) -> Iterator[Association]:
    """Hold an association with the PACS.

    Args:
        node: The archive.
        contexts: What is to be done, at most `MOST_CONTEXTS`.
        activity: Touched by whatever the PACS sends.
        roles: For C-GET: the classes that this side receives.
        store: For C-GET: takes each object.

    Raises:
        PacsError: There is no connection, or the PACS rejects it; the message says why.
    """
    entity = AE(ae_title=node.dicom.our_ae)
    entity.acse_timeout = min(ACSE_S, max(LEAST_ACSE_S, node.config.timeout_s))
    entity.dimse_timeout = entity.network_timeout = None  # see `_wait_by_activity`
    entity.connection_timeout = CONNECT_S
    entity.maximum_pdu_size = LARGEST_PDU
    handlers: list = [(evt.EVT_DATA_RECV, activity.touch)]
    if store is not None:
        handlers.append((evt.EVT_C_STORE, handler_of(store)))
    host, port = split_address(node.dicom.address)
    tls = client_tls(node)
    tls_args = None if tls is None else (tls, node.dicom.server_name or host)
    association = entity.associate(
        host, port, list(contexts), node.dicom.pacs_ae, ext_neg=list(roles), evt_handlers=handlers, tls_args=tls_args
    )
    if not association.is_established:
        raise _not_associated(node, association)
    _wait_by_activity(association, activity, node.config.timeout_s)
    try:
        yield association
    finally:
        if association.is_established:
            association.release()
        else:
            association.kill()


def echo(node: Node, ends: float) -> None:
    """Ask the PACS for a sign of life (C-ECHO), until the monotonic clock shows `ends`. Raises `PacsError`."""
    with associated(node, [build_context(Verification)], Activity(ends)) as association:
        _status_of(node, association.send_c_echo())


class OneAssociation:
    """An association that is opened when it is needed, and again after it was lost or closed."""

    def __init__(self) -> None:
        self._context: AbstractContextManager[Association] | None = None
        self._held: Association | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def held(self, context: AbstractContextManager[Association]) -> Association:
        """Return the open association, or open the one given. Raises `PacsError`."""
        if self._held is None or not self._held.is_established:
            self.close()
            self._held = context.__enter__()
            self._context = context
        return self._held

    def close(self) -> None:
        """Close the association, if there is one."""
        context, self._context, self._held = self._context, None, None
        if context is not None:
            context.__exit__(None, None, None)


class DicomFinder(OneAssociation):
    """Queries a PACS by C-FIND on one association. Use it in a `with` statement. `ends` is when all waiting ends."""

    cuts_silently = False  # PS3.4 C.4.1 has statuses for it; some PACS answer with success all the same

    def __init__(self, node: Node, ends: float) -> None:
        super().__init__()
        self._node, self._activity = node, Activity(ends)

    def find(self, level: str, match: Mapping[str, str], wanted: Iterable[str]) -> Rows:
        """Return what the PACS has.

        Args:
            level: STUDY, SERIES or IMAGE.
            match: Keywords and the values to match.
            wanted: Further keywords to return.

        Raises:
            PacsError: The PACS refuses the query, its answer is too long, the time is over, or the connection is lost.
                It is opened again for the next query.
        """
        try:
            return self._found(level, match, wanted)
        except PacsError:
            self.close()
            if self._activity.is_over:
                raise self._node.out_of_time() from None
            raise

    def _found(self, level: str, match: Mapping[str, str], wanted: Iterable[str]) -> Rows:
        association = self.held(associated(self._node, [build_context(FIND)], self._activity))
        query = Dataset()
        query.QueryRetrieveLevel = level
        for keyword in wanted:
            setattr(query, keyword, "")
        for keyword, value in match.items():
            setattr(query, keyword, value)
        self._activity.touch()
        rows: list[Row] = []
        for status, identifier in association.send_c_find(query, FIND):
            code = _status_of(self._node, status, (*PENDING, SUCCESS, *CUT_SHORT))
            if code in PENDING and identifier is not None:
                rows.append(_row(identifier, (*match, *wanted)))
                if len(rows) > MOST_ROWS:
                    raise self._node.error("the answer is too long; ask for a shorter period, or give a list")
            elif code in CUT_SHORT:
                return Rows(rows=rows, limited=True)
        return Rows(rows=rows)


def move(node: Node, association: Association, activity: Activity, identifiers: Mapping[str, str | list[str]]) -> None:
    """Have objects sent to this site (C-MOVE), and return when the PACS has finished.

    The caller counts what came: the counts of a PACS are not relied on.

    Raises:
        PacsError: The PACS refuses or fails, or the connection is lost.
    """
    activity.touch()
    responses = association.send_c_move(_identifiers(identifiers), node.dicom.our_ae, MOVE)
    _transferred(node, responses, "send the objects to this site")


def get(node: Node, association: Association, activity: Activity, identifiers: Mapping[str, str | list[str]]) -> None:
    """Fetch objects on the association itself (C-GET). Raises as `move`."""
    activity.touch()
    _transferred(node, association.send_c_get(_identifiers(identifiers), GET), "send the objects")


def move_contexts() -> list[PresentationContext]:
    """Return the contexts of an association for C-MOVE."""
    return [build_context(MOVE)]


def get_contexts(classes: Iterable[str]) -> tuple[list[PresentationContext], list[SCP_SCU_RoleSelectionNegotiation]]:
    """Return the contexts and roles of an association for C-GET.

    Each class and transfer syntax has a context of its own, so that the PACS sends each object as it is stored.
    """
    chosen = sorted(set(classes)) or list(USUAL_CLASSES)
    contexts = [build_context(one, syntax) for one in chosen for syntax in SYNTAXES][: MOST_CONTEXTS - 1]
    return [build_context(GET), *contexts], [build_role(one, scp_role=True) for one in chosen]


def send(node: Node, path: Path, association: Association) -> None:
    """Store one file in the PACS (C-STORE), as it is. Raises `PacsError`."""
    status = association.send_c_store(path)
    _status_of(node, status, (SUCCESS, 0xB000, 0xB006, 0xB007), "store the object")


def handler_of(store: Take):  # type: ignore[no-untyped-def]  # the type of pynetdicom's handlers has no name
    """Return the handler of C-STORE requests that gives each object, as it came, to `store`."""

    def handle(event: evt.Event) -> int:
        return SUCCESS if store(event.encoded_dataset()) else 0xC000

    return handle


def storage_contexts(classes: Iterable[str] = ()) -> list[PresentationContext]:
    """Return classes of objects in every syntax, for the receiving side of C-MOVE; without `classes` every class."""
    chosen = sorted(set(classes)) or [str(one.abstract_syntax) for one in AllStoragePresentationContexts]
    return [build_context(one, SYNTAXES) for one in chosen]


def _identifiers(identifiers: Mapping[str, str | list[str]]) -> Dataset:
    query = Dataset()
    for keyword, value in identifiers.items():
        setattr(query, keyword, value)
    levels = {"SOPInstanceUID": "IMAGE", "SeriesInstanceUID": "SERIES", "StudyInstanceUID": "STUDY"}
    query.QueryRetrieveLevel = next(level for keyword, level in levels.items() if keyword in identifiers)
    return query


def _transferred(node: Node, responses: Iterator[tuple[Dataset, Dataset | None]], task: str) -> None:
    for status, _ in responses:
        code = _status_of(node, status, None, task)
        if code in PENDING:
            continue
        if code == MOVE_DESTINATION_UNKNOWN:
            raise node.error(
                f"the PACS does not know {node.dicom.our_ae} as a destination; enter this AE title with the address "
                f"{node.dicom.listen} at the PACS (docs/pacs.md)"
            )
        if code != SUCCESS and not 0xB000 <= code <= 0xBFFF:  # a warning: some objects failed, which are counted
            raise node.error(f"the PACS could not {task} (status 0x{code:04X})")


def _status_of(node: Node, status: Dataset, allowed: Sequence[int] | None = (SUCCESS,), task: str = "answer") -> int:
    """Return the code of a status. Raises `PacsError` if there is none, or it is not one of `allowed`."""
    if "Status" not in status:
        raise node.error("the connection was lost, or the PACS stopped replying; run the same command to go on")
    code = int(status.Status)
    if allowed is not None and code not in allowed:
        raise node.error(f"the PACS could not {task} (status 0x{code:04X})")
    return code


def _row(identifier: Dataset, keywords: Iterable[str]) -> Row:
    """Return an answer as text. Values that cannot be decoded are left out."""
    row: Row = {}
    for keyword in keywords:
        try:
            value = identifier.get(keyword)
            if value is not None:
                row[keyword] = "\\".join(map(str, value)) if _is_several(value) else str(value)
        except Exception:  # pydicom raises many types of error for damaged values
            continue
    return row


def _is_several(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _wait_by_activity(association: Association, activity: Activity, timeout_s: float) -> None:
    """Let the association wait for a message until nothing has been received for `timeout_s` on any connection."""

    def get_msg(block: bool = False) -> tuple:
        while not (block and activity.is_over):  # a PACS may send messages without end
            try:
                return association.dimse.msg_queue.get(block=block, timeout=POLL_S)
            except queue.Empty:
                if not block or activity.idle_s > timeout_s or not association.dul.is_alive():
                    break
        return None, None

    association.dimse.get_msg = get_msg  # type: ignore[method-assign]  # its own timeout counts messages, not bytes


def _not_associated(node: Node, association: Association) -> UnreachableError:
    place = f"{node.dicom.address} ({node.dicom.pacs_ae})"
    if association.is_rejected:
        primitive = association.acceptor.primitive
        reason = "no reason given" if primitive is None else str(primitive.reason_str).lower()
        return node.unreachable(
            f"{place} rejects the association: {reason}; compare pacs_ae and our_ae in site.toml with the settings of "
            "the PACS"
        )
    if association.is_aborted and association.acceptor.primitive is not None:
        return node.unreachable(
            f"{place} accepts none of the requested services; allow query and retrieve for this site"
        )
    return node.unreachable(
        f"no connection to {place}; check the address, the firewall, whether the PACS runs, and TLS on both sides"
    )
