"""What both attackers of test_hostile.py send: ten gigabytes in proper pieces, and a bomb."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable

from flwr.app import Array, ArrayRecord, ConfigRecord
from flwr.proto.message_pb2 import ObjectTree
from flwr.proto.recorddict_pb2 import ConfigRecordValue

from wardround.wire.packets import PROTOCOL_VERSION

PIECE_BYTES = 5 * 2**20
TEN_GB = 10 * 10**9
COUNT_10_GB = TEN_GB // PIECE_BYTES
BOMB_SHAPE = (50_000, 50_000)  # ten gigabytes of float32


def array_piece(number: int) -> bytes:
    """One piece of 5 MiB of an array, as Flower sends it; each number gives another."""
    return b"ArrayChunk  %d\x00" % PIECE_BYTES + number.to_bytes(8, "little") + b"x" * (PIECE_BYTES - 8)


def name_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def missing(number: int) -> str:
    """The name of a piece that there is not."""
    return name_of(b"%d" % number)


def junk_of(names: Iterable[str]) -> tuple[bytes, ObjectTree]:
    """An object that calls itself a message and consists of these pieces, with its tree."""
    names = list(names)
    content = b"Message %s 4\x00junk" % ",".join(names).encode()
    return content, ObjectTree(object_id=name_of(content), children=[ObjectTree(object_id=name) for name in names])


def large_proposal(size: int) -> bytes:
    """A proposal whose study has so many characters, as Flower sends a record; written by hand, for a gigabyte of text
    costs Flower's own way several, and a minute in which its process answers nobody.
    """
    few = ConfigRecord({"protocol": PROTOCOL_VERSION, "study_sha256": "a" * 64}).deflate().split(b"\x00", 1)[1]
    text = field(ConfigRecordValue.DESCRIPTOR.fields_by_name["string"].number, size)
    value = field(2, len(text) + size) + text  # of an item, beside its key
    key = field(1, len(b"study")) + b"study"
    item = field(1, len(key) + len(value) + size) + key + value
    return b"".join((b"ConfigRecord  %d\x00" % (len(few) + len(item) + size), few, item, b"x" * size))


def field(number: int, size: int) -> bytes:
    """How protobuf begins a field that holds so many bytes."""
    begun = bytes([number << 3 | 2])
    while size > 127:
        begun += bytes([size & 127 | 128])
        size >>= 7
    return begun + bytes([size])


def bomb() -> ArrayRecord:
    """One piece of 5 MiB on the wire, ten gigabytes when put together: the array names its one piece 1907 times."""
    return ArrayRecord({"w": Array("float32", BOMB_SHAPE, "raw", bytes(PIECE_BYTES))})


plain_deflate = Array.deflate


def deflate(array: Array) -> bytes:
    """Flower's own, but for an array of a bomb's shape: its list of pieces names the one piece again and again."""
    content = plain_deflate(array)
    if tuple(array.shape) != BOMB_SHAPE:
        return content
    head, body = content.split(b"\x00", 1)
    body = json.dumps({**json.loads(body), "arraychunk_ids": [0] * COUNT_10_GB}).encode()
    kind, pieces, _ = head.split(b" ")
    return b"%s %s %d\x00%s" % (kind, pieces, len(body), body)


Array.deflate = deflate
