"""A web service that trickles, never ends or compresses holds no call longer than its time, and fills no memory."""

from __future__ import annotations

import gzip
import time
from pathlib import Path

import pytest
from builders.web_service import HEAD, QUERY, service

from wardround.errors import UsageError
from wardround_client.pacs.node import Node, PacsError
from wardround_client.pacs.transfer import Request
from wardround_client.pacs.web import client, services
from wardround_client.pacs.web.services import WebFinder, WebTransfer, send_files
from wardround_client.site.pacs_config import PacsConfig

OBJECTS = b'multipart/related; type="application/dicom"; boundary=b'
FOUND = b'[{"0020000D": {"vr": "UI", "Value": ["1.2"]}}]'
LIMIT_S = 0.5


def find(node: Node, ends: float) -> list[dict[str, str]]:
    with WebFinder(node, ends) as finder:
        return finder.find("STUDY", {}, ["StudyInstanceUID"]).rows


@pytest.mark.parametrize(
    "named",
    [{"ca_file": "ca.pem"}, {"token_file": "token"}, {"certificate_file": "a.pem", "key_file": "a.key"}],
    ids=lambda one: next(iter(one)),
)
def test_a_missing_file_of_the_settings_is_wrong_usage(tmp_path, named):
    config = PacsConfig(way="web", web={"url": "https://127.0.0.1:9", **named})
    with pytest.raises(UsageError, match="no such file; correct pacs.archive in site.toml"):
        find(Node(name="archive", config=config, site=tmp_path), time.monotonic() + 1)


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
