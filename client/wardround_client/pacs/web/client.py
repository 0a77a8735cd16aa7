"""The client of a DICOMweb service: dicomweb-client with connections and answers that are bounded.

Certificates are always verified, redirections are not followed, and environment variables about proxies and CAs do not
count. Every wait has a time limit, and so has an answer as a whole, which could come a byte at a time. Answers come
uncompressed, so that few bytes stay few. Retries are ours. Objects are kept as the bytes that were sent: the client
would parse them and write them anew.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any
from weakref import WeakSet

import requests
from dicomweb_client.web import DICOMwebClient
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool

from wardround_client.pacs.node import Node, PacsError, existing, own_key, read_secret
from wardround_client.pacs.web.errors import TooLongError

CONNECT_S, CUT_AGAIN_S = 10.0, 0.5
CHUNK_BYTES = 2**20
MOST_ANSWER_BYTES = 2**28  # to a query, or to an object that is stored
MOST_OBJECT_BYTES = 2**31  # it is held in memory; the largest that are usual (tomosynthesis) have 1 GB
AS_STORED = 'multipart/related; type="application/dicom"; transfer-syntax=*'
TAIL_BYTES = 256  # in which the closing boundary of a complete message lies


class _Bearer(requests.auth.AuthBase):
    """Sends a bearer token (RFC 6750)."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request


class _Adapter(requests.adapters.HTTPAdapter):
    """Connections that can be cut from another thread, whatever is waited for: headers, a chunk or content."""

    def init_poolmanager(self, *given: Any, **named: Any) -> None:
        self._sockets: WeakSet[socket.socket] = WeakSet()
        super().init_poolmanager(*given, **named)
        self.poolmanager.pool_classes_by_scheme = {
            pool.scheme: type(pool.__name__, (pool,), {"ConnectionCls": self._remembering(pool.ConnectionCls)})
            for pool in (HTTPConnectionPool, HTTPSConnectionPool)
        }

    def _remembering(self, kind: Any) -> type:
        sockets = self._sockets

        class Remembering(kind):
            def connect(self) -> None:
                super().connect()
                sockets.add(self.sock)

        return Remembering

    @contextmanager
    def until(self, ends: float) -> Iterator[None]:
        """Cut all connections once the monotonic clock has passed `ends`, until the block is left."""
        done = threading.Event()
        watch = threading.Thread(target=self._cut, args=(ends, done), name="pull-web-watch", daemon=True)
        watch.start()
        try:
            yield
        finally:
            done.set()
            watch.join()

    def _cut(self, ends: float, done: threading.Event) -> None:
        wait_s = min(max(0.0, ends - time.monotonic()), threading.TIMEOUT_MAX)
        while not done.wait(wait_s):
            for one in list(self._sockets):
                with suppress(OSError):
                    socket.socket.shutdown(one, socket.SHUT_RDWR)  # that of a TLS socket would forget its TLS
            wait_s = CUT_AGAIN_S  # one may have been opened meanwhile


class WebClient(DICOMwebClient):
    """The client, with the objects of an answer as the bytes that were sent, and a limit for other answers."""

    def _http_get(self, url: str, params: Any = None, headers: Any = None, stream: bool = False) -> requests.Response:
        response = super()._http_get(url, params, headers, stream=True)
        return response if stream else read_whole(response, MOST_ANSWER_BYTES)

    def objects_at(self, url: str) -> Iterator[bytes]:
        """Yield each object of a multipart answer. An object is yielded only when what follows it has arrived.

        Raises:
            requests.RequestException, ValueError: The request fails, the answer is cut short, or an object is longer
                than `MOST_OBJECT_BYTES`.
        """
        response = self._http_get(url, headers={"Accept": AS_STORED}, stream=True)
        if response.headers.get("Content-Type", "").startswith("application/dicom"):  # one object, not wrapped
            yield read_whole(response, MOST_OBJECT_BYTES).content
            return
        watched = _Watched(response)
        before: bytes | None = None
        for part in self._decode_multipart_message(watched, stream=True):  # type: ignore[arg-type]  # stands in for it
            if before is not None:
                yield before
            before, watched.undecided_bytes = bytes(part), 0
        if not watched.tail.rstrip().endswith(b"--"):
            raise requests.ConnectionError("the answer was cut short")
        if before is not None:
            yield before


def read_whole(response: requests.Response, most_bytes: int) -> requests.Response:
    """Read the content of a streamed response, and return the response. Raises `TooLongError` beyond `most_bytes`."""
    content = bytearray()
    with response:
        for chunk in response.iter_content(CHUNK_BYTES):
            content += chunk
            if len(content) > most_bytes:
                raise TooLongError("the answer is too long")
    response._content = bytes(content)
    return response


class _Watched:
    """A multipart response that limits each object, and remembers its last bytes, to see whether it was complete.

    `undecided_bytes` counts what came since the last object, which is reset by whoever takes that.
    """

    def __init__(self, response: requests.Response) -> None:
        self._response, self.tail, self.undecided_bytes = response, b"", 0
        self.headers = response.headers

    def __enter__(self) -> _Watched:
        return self

    def __exit__(self, *error: object) -> None:
        self._response.close()

    @property
    def content(self) -> bytes:
        raise ValueError("the answer has no boundary")

    def iter_content(self, chunk_size: int) -> Iterator[bytes]:
        for chunk in self._response.iter_content(chunk_size=chunk_size):
            self.tail = (self.tail + chunk)[-TAIL_BYTES:]
            self.undecided_bytes += len(chunk)
            if self.undecided_bytes > MOST_OBJECT_BYTES:
                raise TooLongError("an object is too long")
            yield chunk


def open_client(node: Node) -> WebClient:
    """Return a client for the web service of an archive.

    Raises:
        UsageError: There is no web section, or a file of a key, password or token cannot be used.
    """
    config = node.web
    session = requests.Session()
    session.trust_env = False
    session.max_redirects = 0
    session.headers["Accept-Encoding"] = "identity"
    session.hooks["response"].append(_refuse_compressed)
    for scheme in ("http://", "https://"):
        session.mount(scheme, _Adapter())
    session.verify = True if config.ca_file is None else str(existing(node, config.ca_file))
    if config.certificate_file is not None and config.key_file is not None:
        session.cert = (str(existing(node, config.certificate_file)), str(own_key(node, config.key_file)))
    if config.user is not None and config.password_file is not None:
        session.auth = requests.auth.HTTPBasicAuth(
            config.user.encode(), read_secret(node, config.password_file).encode()
        )
    elif config.token_file is not None:
        session.auth = _Bearer(read_secret(node, config.token_file))
    client = WebClient(config.url, session=session, chunk_size=CHUNK_BYTES, timeout=(CONNECT_S, node.config.timeout_s))
    client.set_http_retry_params(retry=False)
    return client


@contextmanager
def until(node: Node, client: WebClient, ends: float) -> Iterator[None]:
    """Work with a client no longer than the monotonic clock shows `ends`. Raises `PacsError` then."""
    try:
        with client._session.get_adapter(node.web.url).until(ends):  # type: ignore[attr-defined]  # ours
            yield
    except PacsError:
        if time.monotonic() <= ends:
            raise
    if time.monotonic() > ends:  # an answer that was cut within its headers looks whole and empty
        raise node.out_of_time()


def _refuse_compressed(response: requests.Response, **named: object) -> None:
    if response.headers.get("Content-Encoding", "identity").lower() != "identity":
        response.close()
        raise requests.exceptions.ContentDecodingError("the answer is compressed", response=response)
