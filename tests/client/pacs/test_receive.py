"""Received objects are identified by few bytes, whatever they claim to contain."""

from __future__ import annotations

import io
import tracemalloc
import zlib

import pytest
from builders.archive import small_ct
from pydicom import dcmread
from pydicom.uid import DeflatedExplicitVRLittleEndian

from wardround_client.pacs.manifest import file_name, open_manifest
from wardround_client.pacs.receive import MOST_INFLATED, Receiver

SOP, SERIES = "1.2.3.1.1.1", "1.2.3.1.1"


def deflated(before: bytes = b"", after: bytes = b"") -> bytes:
    """A deflated object, with further content before and after its elements."""
    dataset = dcmread(io.BytesIO(small_ct(1, 1)))
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    whole = file.getvalue()
    begin = 144 + int.from_bytes(whole[140:144], "little")
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    body = before + zlib.decompress(whole[begin:], -zlib.MAX_WBITS) + after
    return whole[:begin] + packer.compress(body) + packer.flush()


@pytest.fixture
def receiver(tmp_path):
    with open_manifest(tmp_path / "out") as manifest:
        one = Receiver(manifest)
        one.expect(SERIES, [SOP])
        yield one
        one.close()


def test_a_deflated_object_is_kept_as_it_came(tmp_path, receiver):
    content = deflated()
    assert receiver.take(content)
    receiver.flush()
    assert (tmp_path / "out" / file_name(SOP)).read_bytes() == content


def test_a_deflated_bomb_is_not_inflated(receiver):
    content = deflated(after=bytes(64 * MOST_INFLATED))
    tracemalloc.start()
    try:
        assert receiver.take(content)
        assert tracemalloc.get_traced_memory()[1] < 8 * MOST_INFLATED
    finally:
        tracemalloc.stop()


def test_what_cannot_be_identified_within_the_limit_is_damaged(receiver):
    private = b"\x07\x00\x10\x00OB\x00\x00" + (2 * MOST_INFLATED).to_bytes(4, "little") + bytes(2 * MOST_INFLATED)
    assert not receiver.take(deflated(before=private))
    assert receiver.counts["damaged"] == 1
