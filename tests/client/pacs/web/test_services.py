"""A web service that trickles, never ends or compresses holds no call longer than its time, and fills no memory."""

from __future__ import annotations

import gzip
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from wardround_client.pacs.node import Node, PacsError
from wardround_client.pacs.transfer import Request
from wardround_client.pacs.web import client, services
from wardround_client.pacs.web.services import WebFinder, WebTransfer, send_files
from wardround_client.site.pacs_config import PacsConfig

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: "
QUERY, OBJECTS = b"application/dicom+json", b'multipart/related; type="application/dicom"; boundary=b'
FOUND = b'[{"0020000D": {"vr": "UI", "Value": ["1.2"]}}]'
LIMIT_S = 0.5


@contextmanager
def service(answer: bytes, trickle: bytes = b"") -> Iterator[Node]:
    """A web service that sends these bytes to any request, and then, ten times a second for 5 s, others."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.do_GET()

        def do_GET(self) -> None:
            asked.append(self.headers["Accept-Encoding"])
            self.close_connection = True
            try:
                self.wfile.write(answer)
                for _ in range(50 if trickle else 0):
                    self.wfile.write(trickle)
                    time.sleep(0.1)
            except OSError:
                pass

        def log_message(self, *words: object) -> None:
            pass

    asked: list[str] = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        config = PacsConfig(way="web", timeout_s=1, web={"url": f"http://127.0.0.1:{server.server_port}"})
        yield Node(name="archive", config=config, site=Path())
        server.shutdown()
    assert set(asked) == {"identity"}


def find(node: Node, ends: float) -> list[dict[str, str]]:
    with WebFinder(node, ends) as finder:
        return finder.find("STUDY", {}, ["StudyInstanceUID"]).rows


def fetch(node: Node, ends: float) -> None:
    with WebTransfer(node, lambda content: True, ends) as transfer:
        transfer.fetch(Request(study_uid="1", series_uid="2"))


def send(node: Node, ends: float) -> list[str]:
    return [why for _, why in send_files(node, [Path(__file__)], ends)]


@pytest.mark.parametrize("call, media", [(find, QUERY), (fetch, OBJECTS), (send, QUERY)])
@pytest.mark.parametrize(
    "begun, trickle",
    [
        (b"\r\nContent-Length: 100000\r\n\r\n", b" "),
        (b"\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
        (b"\r\nTransfer-Encoding: chunked\r\n\r\n1;", b"x"),
        (b"\r\nX: ", b"x"),
    ],
    ids=["content", "chunks", "chunk", "headers"],
)
def test_an_answer_that_trickles_ends_with_the_time_limit(call, media, begun, trickle):
    with service(HEAD + media + begun, trickle) as node:
        start = time.monotonic()
        with pytest.raises(PacsError, match="the time limit is reached"):
            call(node, start + LIMIT_S)
        assert time.monotonic() - start < 3


def test_an_answer_to_a_query_has_a_longest_time_and_a_most_size(monkeypatch):
    monkeypatch.setattr(services, "LONGEST_ANSWER_S", LIMIT_S)
    with service(HEAD + QUERY + b"\r\nContent-Length: 100000\r\n\r\n", b" ") as node, pytest.raises(PacsError):
        start = time.monotonic()
        find(node, start + 60)
    monkeypatch.setattr(client, "MOST_ANSWER_BYTES", len(FOUND))
    with service(HEAD + QUERY + b"\r\n\r\n" + FOUND) as node:
        assert find(node, time.monotonic() + 60) == [{"StudyInstanceUID": "1.2"}]
    with service(HEAD + QUERY + b"\r\n\r\n" + FOUND + b" ") as node, pytest.raises(PacsError, match="too long"):
        find(node, time.monotonic() + 60)


def test_an_answer_about_a_stored_object_has_a_longest_time_and_a_most_size(monkeypatch):
    monkeypatch.setattr(services, "LONGEST_ANSWER_S", LIMIT_S)
    with service(HEAD + QUERY + b"\r\nContent-Length: 100000\r\n\r\n", b" ") as node, pytest.raises(PacsError):
        start = time.monotonic()
        send(node, start + 60)
    assert time.monotonic() - start < 3
    monkeypatch.setattr(services, "MOST_ANSWER_BYTES", 2)
    with service(HEAD + QUERY + b"\r\n\r\n{}") as node:
        assert send(node, time.monotonic() + 60) == [""]
    with service(HEAD + QUERY + b"\r\n\r\n{} ") as node, pytest.raises(PacsError, match="too long"):
        send(node, time.monotonic() + 60)


@pytest.mark.parametrize(
    "media, head, tail",
    [(b"application/dicom", b"", b""), (OBJECTS + b"x", b"--x\r\nContent-Type: a/b\r\n\r\n", b"\r\n--x--")],
    ids=["alone", "wrapped"],
)
def test_an_object_has_a_most_size(monkeypatch, media, head, tail):
    content = head + b"0123456789" + tail
    monkeypatch.setattr(client, "MOST_OBJECT_BYTES", len(content))
    with service(HEAD + media + b"\r\n\r\n" + content) as node:
        fetch(node, time.monotonic() + 60)
    monkeypatch.setattr(client, "MOST_OBJECT_BYTES", len(content) - 1)
    with service(HEAD + media + b"\r\n\r\n" + content) as node, pytest.raises(PacsError, match="too long"):
        fetch(node, time.monotonic() + 60)


@pytest.mark.parametrize("call, media", [(find, QUERY), (fetch, b"application/dicom")])
def test_a_compressed_answer_is_refused(call, media):
    packed = gzip.compress(FOUND)
    answer = HEAD + media + b"\r\nContent-Encoding: gzip\r\n\r\n" + packed
    with service(answer) as node, pytest.raises(PacsError, match="compresses its answer"):
        call(node, time.monotonic() + 60)
