"""The receiving side of C-MOVE: a DICOM storage server for the one archive that was asked, while it is asked.

It listens on the configured address only, accepts connections from the configured addresses only, and associations for
its own AE title from that of the PACS only. Whatever else connects is counted, because a wrong setting shows there.

Every connection has its own thread, also while TLS is agreed on, so that one that stalls holds up no other. The number
of connections is bounded, and each wait for a peer: for TLS, for the first request, and for each PDU, which may not be
longer than a megabyte.
"""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from enum import Enum

from pynetdicom import AE, Association, evt
from pynetdicom.presentation import build_context
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]  # made when the module is loaded
from pynetdicom.transport import AssociationSocket, RequestHandler, ThreadedAssociationServer

from wardround.errors import UsageError, required
from wardround.operations.tls_probe import split_address
from wardround.storage.disk_errors import cause
from wardround_client.pacs.dimse import LARGEST_PDU, Activity, handler_of, storage_contexts
from wardround_client.pacs.node import Node, Take, senders, server_tls

HANDSHAKE_S = 10.0  # for TLS, and again for the request of an association
MOST_ASSOCIATIONS = 8
MOST_CONNECTIONS = 32  # with those that have no association yet
READ_BYTES = 2**16
MOST_PDU_BYTES = 4 * LARGEST_PDU  # what a peer announces for one PDU; a request lists its contexts, and may be longer


class Refusal(Enum):
    """Why the storage server refused the PACS, to which it reports no more than a failure."""

    ADDRESS = "it sent from an address that is not in sends_from"
    AE_TITLE = "it sent with an AE title that is not pacs_ae, or called another one than our_ae"
    TLS = "its TLS handshake with this site failed: compare the certificates"
    FULL = "it, or another program on an address in sends_from, opened too many connections at once"


class BoundedSocket(AssociationSocket):
    """A connection of an association, on which no PDU may be longer than a megabyte or take longer than the timeout.

    pynetdicom reads a PDU to its end, however long that takes, and its own timers do not run meanwhile.
    """

    def recv(self, nr_bytes: int) -> bytearray:
        """Return what the peer sent, less if it closed the connection. Raises `OSError` for a PDU beyond the limits."""
        connection = required(self.socket, "socket")
        if nr_bytes > MOST_PDU_BYTES:
            raise OSError("the peer announced a PDU that is too long")
        ends, content = time.monotonic() + (self.assoc.network_timeout or HANDSHAKE_S), bytearray()
        while len(content) < nr_bytes:
            connection.settimeout(max(ends - time.monotonic(), 0.001))
            more = connection.recv(min(nr_bytes - len(content), READ_BYTES))
            if not more:
                break
            content += more
            if time.monotonic() > ends:
                raise TimeoutError("the peer sends a PDU too slowly")
        return content


class Handler(RequestHandler):
    """Makes the association of a connection, with bounded reads."""

    def _create_association(self) -> Association:
        association = super()._create_association()
        required(association.dul.socket, "socket").__class__ = BoundedSocket  # a new one would announce itself twice
        return association


class StorageServer(ThreadedAssociationServer):
    """A storage server that closes connections from other addresses before it reads from them."""

    daemon_threads, block_on_close = True, False  # what a peer delays does not delay the end of a pull

    def __init__(self, *arguments: object, allowed: frozenset[str], **named: object) -> None:
        self.allowed, self.refused = allowed, Counter[Refusal]()
        self.classes: frozenset[str] | None = None
        self._handshakes, self._lock = 0, threading.Lock()
        super().__init__(*arguments, **named)  # type: ignore[arg-type]  # passed on

    def accept(self, classes: Iterable[str]) -> None:
        """Accept objects of these classes from now on, or of every class if none is given.

        pynetdicom copies all contexts for each association, which for every class costs a tenth of a second. An
        association that is still open was negotiated for other classes, so it is ended.
        """
        chosen = frozenset(classes)
        if chosen == self.classes:
            return
        self.classes = chosen
        echo = [build_context(Verification)]  # when the administrator of the PACS tests the entry of this site
        self.contexts = [*storage_contexts(chosen), *echo]
        self.end_associations()

    def end_associations(self) -> None:
        """End what the PACS keeps open."""
        for association in self.active_associations:
            association.abort()

    def get_request(self) -> tuple[socket.socket, tuple[str, int]]:
        """Accept a connection. Raises `OSError`, which the server ignores, for one that is not wanted."""
        client, address = self.socket.accept()  # type: ignore[union-attr]  # it is bound
        if address[0] not in self.allowed:
            self.refused[Refusal.ADDRESS] += 1
            client.close()
            raise OSError("a connection from another address")
        with self._lock:
            if self._handshakes + len(self.active_associations) >= MOST_CONNECTIONS:
                self.refused[Refusal.FULL] += 1
                client.close()
                raise OSError("too many connections at once")
            self._handshakes += 1
        client.settimeout(HANDSHAKE_S)
        return client, address

    def process_request_thread(self, request: socket.socket, client_address: object) -> None:  # type: ignore[override]
        """Agree on TLS, which may take `HANDSHAKE_S` in all, and begin the association."""
        try:
            if self.ssl_context is not None:
                request = self.ssl_context.wrap_socket(request, server_side=True)
            super().process_request_thread(request, client_address)  # type: ignore[arg-type]  # as it came
        except OSError:
            self.refused[Refusal.TLS] += 1
            request.close()
        finally:
            with self._lock:
                self._handshakes -= 1


@contextmanager
def receiving(node: Node, store: Take, activity: Activity) -> Iterator[StorageServer]:
    """Receive objects for as long as the block lasts.

    Args:
        node: The archive, with `listen` in its DICOM section.
        store: Takes each object.
        activity: Touched by whatever is received.

    Raises:
        UsageError: `listen` is missing, or the address cannot be used.
    """
    if node.dicom.listen is None:
        raise UsageError(f"site.toml: pacs.{node.name}.dicom.listen: c-move needs the address on which to receive")
    host, port = split_address(node.dicom.listen)
    entity = AE(ae_title=node.dicom.our_ae)
    entity.maximum_pdu_size, entity.maximum_associations = LARGEST_PDU, MOST_ASSOCIATIONS
    entity.network_timeout = entity.dimse_timeout = node.config.timeout_s
    entity.acse_timeout = HANDSHAKE_S
    entity.require_called_aet, entity.require_calling_aet = True, [node.dicom.pacs_ae]
    entity.supported_contexts = storage_contexts()
    tls: ssl.SSLContext | None = server_tls(node)
    refused = Counter[Refusal]()

    def rejected(event: evt.Event) -> None:
        refused[Refusal.AE_TITLE] += 1

    handlers: list = [
        (evt.EVT_C_STORE, handler_of(store)),
        (evt.EVT_DATA_RECV, activity.touch),
        (evt.EVT_REJECTED, rejected),
    ]
    try:
        server = entity.make_server(
            (host, port), ssl_context=tls, evt_handlers=handlers, server_class=StorageServer,
            request_handler=Handler, allowed=senders(node),
        )  # fmt: skip
    except OSError as error:
        raise UsageError(
            f"site.toml: pacs.{node.name}.dicom.listen: {node.dicom.listen} cannot be used: {cause(error)}; it must be "
            "an address of this machine, and a port that no other program uses"
        ) from None
    if not isinstance(server, StorageServer):
        raise TypeError("pynetdicom made a server of another class")
    server.refused = refused
    server.accept(())
    entity._servers.append(server)  # as `start_server` does; `shutdown` removes it
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.end_associations()
        thread.join(HANDSHAKE_S)
