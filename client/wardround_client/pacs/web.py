"""DICOMweb: queries (QIDO-RS), transfers (WADO-RS), storing (STOW-RS), by dicomweb-client.

Certificates are always verified, redirections are not followed, and environment variables about proxies and CAs do not
count. Every wait has a time limit, and so has an answer as a whole, which could come a byte at a time. Answers come
uncompressed, so that few bytes stay few. Retries are ours. Objects are kept as the bytes that were sent: the client
would parse them and write them anew.
"""

from __future__ import annotations

import math
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakSet

import requests
from dicomweb_client.web import DICOMwebClient
from pydicom.datadict import tag_for_keyword
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool

from wardround_client.pacs.node import Node, PacsError, Row, Rows, Take, existing, own_key, read_secret

if TYPE_CHECKING:
    from wardround_client.pacs.transfer import Request

CONNECT_S, CUT_AGAIN_S = 10.0, 0.5
CHUNK_BYTES = 2**20
MOST_ANSWER_BYTES, LONGEST_ANSWER_S = 2**28, 600.0  # of one query
AS_STORED = 'multipart/related; type="application/dicom"; transfer-syntax=*'
TAIL_BYTES = 256  # in which the closing boundary of a complete message lies
OVER = "the time limit is reached; run the same command to go on"
_LEVELS = {"STUDY": "search_for_studies", "SERIES": "search_for_series", "IMAGE": "search_for_instances"}
_IN_PATH = {"StudyInstanceUID": "study_instance_uid", "SeriesInstanceUID": "series_instance_uid"}
Answer = TypeVar("Answer")


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


class _Client(DICOMwebClient):
    """The client, with the objects of an answer as the bytes that were sent, and a limit for other answers."""

    def _http_get(self, url: str, params: Any = None, headers: Any = None, stream: bool = False) -> requests.Response:
        response = super()._http_get(url, params, headers, stream=True)
        if not stream:
            content = bytearray()
            with response:
                for chunk in response.iter_content(CHUNK_BYTES):
                    content += chunk
                    if len(content) > MOST_ANSWER_BYTES:
                        raise ValueError("the answer is too long")
            response._content = bytes(content)
        return response

    def objects_at(self, url: str) -> Iterator[bytes]:
        """Yield each object of a multipart answer. An object is yielded only when what follows it has arrived.

        Raises:
            requests.RequestException, ValueError: The request fails, or the answer is cut short.
        """
        response = self._http_get(url, headers={"Accept": AS_STORED}, stream=True)
        if response.headers.get("Content-Type", "").startswith("application/dicom"):  # one object, not wrapped
            with response:
                yield response.content
            return
        watched = _Tail(response)
        before: bytes | None = None
        for part in self._decode_multipart_message(watched, stream=True):  # type: ignore[arg-type]  # stands in for it
            if before is not None:
                yield before
            before = bytes(part)
        if not watched.tail.rstrip().endswith(b"--"):
            raise requests.ConnectionError("the answer was cut short")
        if before is not None:
            yield before


class _Tail:
    """A response that remembers its last bytes, to see whether the message was complete."""

    def __init__(self, response: requests.Response) -> None:
        self._response, self.tail = response, b""
        self.headers = response.headers

    def __enter__(self) -> _Tail:
        return self

    def __exit__(self, *error: object) -> None:
        self._response.close()

    @property
    def content(self) -> bytes:
        raise ValueError("the answer has no boundary")

    def iter_content(self, chunk_size: int) -> Iterator[bytes]:
        for chunk in self._response.iter_content(chunk_size=chunk_size):
            self.tail = (self.tail + chunk)[-TAIL_BYTES:]
            yield chunk


def open_client(node: Node) -> _Client:
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
    client = _Client(config.url, session=session, chunk_size=CHUNK_BYTES, timeout=(CONNECT_S, node.config.timeout_s))
    client.set_http_retry_params(retry=False)
    return client


@contextmanager
def _until(node: Node, client: _Client, ends: float) -> Iterator[None]:
    """Work with a client no longer than the monotonic clock shows `ends`. Raises `PacsError` then."""
    try:
        with client._session.get_adapter(node.web.url).until(ends):  # type: ignore[attr-defined]  # ours
            yield
    except PacsError:
        if time.monotonic() <= ends:
            raise
    if time.monotonic() > ends:  # an answer that was cut within its headers looks whole and empty
        raise node.error(OVER)


def _refuse_compressed(response: requests.Response, **named: object) -> None:
    if response.headers.get("Content-Encoding", "identity").lower() != "identity":
        response.close()
        raise requests.exceptions.ContentDecodingError("the answer is compressed", response=response)


class WebFinder:
    """Queries a PACS by QIDO-RS. Use it in a `with` statement. `ends` is when all waiting ends."""

    cuts_silently = True

    def __init__(self, node: Node, ends: float = math.inf) -> None:
        self._node, self._client, self._ends = node, open_client(node), ends

    def __enter__(self) -> WebFinder:
        return self

    def __exit__(self, *error: object) -> None:
        self._client._session.close()

    def find(self, level: str, match: Mapping[str, str], wanted: Iterable[str]) -> Rows:
        """Return what the PACS has. Arguments and errors as those of `dimse.Finder.find`."""
        keywords = list(wanted)
        path = {} if level == "STUDY" else {_IN_PATH[one]: match[one] for one in _IN_PATH if one in match}
        filters = {key: value for key, value in match.items() if level == "STUDY" or key not in _IN_PATH}
        search = getattr(self._client, _LEVELS[level])
        with _until(self._node, self._client, min(self._ends, time.monotonic() + LONGEST_ANSWER_S)):
            found = attempted(self._node, lambda: search(**path, search_filters=filters, fields=keywords))
        tags = {f"{tag_for_keyword(keyword):08X}": keyword for keyword in (*match, *keywords)}
        return Rows(rows=[_row(one, tags) for one in found if isinstance(one, dict)])


class WebTransfer:
    """Fetches objects by WADO-RS."""

    def __init__(self, node: Node, take: Take, ends: float) -> None:
        self._node, self._take, self._ends = node, take, ends
        self._client = open_client(node)

    def __enter__(self) -> WebTransfer:
        return self

    def __exit__(self, *error: object) -> None:
        self._client._session.close()

    def fetch(self, request: Request) -> None:
        """Fetch objects, as `transfer.Transfer`."""
        root = f"{self._node.web.url}/studies/{request.study_uid}/series/{request.series_uid}"
        urls = [f"{root}/instances/{sop_uid}" for sop_uid in request.sop_uids] or [root]
        for url in urls:
            with _until(self._node, self._client, self._ends):
                attempted(self._node, lambda url=url: self._taken(url))  # type: ignore[misc]  # bound at once

    def _taken(self, url: str) -> None:
        objects = self._client.objects_at(url)
        for content in objects:
            self._take(content)
            if time.monotonic() > self._ends:
                objects.close()  # type: ignore[attr-defined]  # a generator
                raise self._node.error(OVER)


def send_files(node: Node, paths: Iterable[Path]) -> Iterator[tuple[Path, str]]:
    """Store files by STOW-RS, one by one, as they are. Yields each path with "" or why it was not stored.

    Raises:
        PacsError: The service does not reply, or refuses to be used.
    """
    client = open_client(node)
    boundary = "wardround-object"
    try:
        for path in paths:
            content = path.read_bytes()
            head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
            body = head + content + f"\r\n--{boundary}--\r\n".encode()
            media = f'multipart/related; type="application/dicom"; boundary={boundary}'
            headers = {"Content-Type": media, "Accept": "application/dicom+json"}

            def post(body: bytes = body, headers: dict[str, str] = headers) -> requests.Response:
                return client._session.post(
                    f"{node.web.url}/studies", data=body, headers=headers, timeout=(CONNECT_S, node.config.timeout_s)
                )

            response = attempted(node, post)
            if response.status_code in (401, 403, 404) or response.status_code >= 500:
                attempted(node, response.raise_for_status)
            yield path, _why_not_stored(response)
    finally:
        client._session.close()


def attempted(node: Node, work: Callable[[], Answer]) -> Answer:
    """Return what `work` returns. Errors of the connection and of HTTP become a `PacsError` with a cause."""
    try:
        return work()
    except PacsError:
        raise
    except requests.HTTPError as error:
        code = 0 if error.response is None else error.response.status_code
        text = _HTTP.get(code, f"the web service answers with HTTP status {code}")
        raise (node.unreachable(text) if code in (401, 403) else node.error(text)) from None
    except requests.TooManyRedirects:
        raise node.unreachable(
            "the web service redirects to another address; enter the final address as web.url"
        ) from None
    except requests.exceptions.SSLError:
        raise node.unreachable(
            "TLS failed: the certificate of the web service is not valid for this address and web.ca_file, or it asks "
            "for a certificate of this site"
        ) from None
    except requests.Timeout:
        raise node.error(
            f"the web service has not replied within {node.config.timeout_s:g} s; run the same command to go on"
        ) from None
    except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError):
        raise node.unreachable(
            "the connection to the web service failed or was lost; check web.url and the firewall, then run the same "
            "command to go on"
        ) from None
    except requests.exceptions.ContentDecodingError:
        raise node.error(
            "the web service compresses its answer although it was asked not to; switch that off for this site"
        ) from None
    except (requests.RequestException, ValueError, KeyError, TypeError):
        raise node.error("the web service answered with something that is not DICOMweb; check web.url") from None


_HTTP = {
    401: "the web service refuses the user, password or token (HTTP 401); check the files named in site.toml",
    403: "the web service forbids this to the user (HTTP 403); ask the administrator of the PACS",
    404: "the web service does not have what was asked for (HTTP 404); check web.url",
    429: "the web service asks for fewer requests (HTTP 429); run the same command later",
    503: "the web service is overloaded or down (HTTP 503); run the same command later",
}


def _row(answer: dict[str, Any], tags: Mapping[str, str]) -> Row:
    row: Row = {}
    for tag, keyword in tags.items():
        element = answer.get(tag)
        values = element.get("Value") if isinstance(element, dict) else None
        if isinstance(values, list) and values and all(isinstance(one, str | int) for one in values):
            row[keyword] = "\\".join(map(str, values))
    return row


def _why_not_stored(response: requests.Response) -> str:
    if response.status_code in (200, 202):
        with suppress(ValueError, KeyError, AttributeError, TypeError):
            failed = response.json().get("00081198", {}).get("Value", [])
            if not failed:
                return ""
            return f"status 0x{int(failed[0]['00081197']['Value'][0]):04X}"
    return f"HTTP status {response.status_code}"
