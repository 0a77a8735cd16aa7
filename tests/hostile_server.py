"""A hostile server's own ServerApp, for test_hostile.py, which puts it into a bundle: it asks a hospital for anything.

What it needs to know stands in hostile.json of the server's folder; what the hospital said to each question goes to
said.jsonl.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, Metadata, RecordDict
from flwr.app.message import make_message, remove_content_from_message
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import ObjectTree, PushObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import PushAppMessagesRequest
from flwr.serverapp import ServerApp

from wardround.checkpoint import load_checkpoint
from wardround.wire import Broadcast, pack_broadcast, weights_sha256
from wardround_server.app import record_of

PIECE_BYTES = 5 * 2**20
TEN_GB = 10 * 10**9
LIMIT_S = 240.0

app = ServerApp()


@app.main()
def main(grid, context) -> None:
    """Ask one question after the other."""
    folder = Path(os.environ["WARDROUND_SERVER"])
    facts = json.loads((folder / "hostile.json").read_text())
    node = next(iter(grid.get_node_ids()))
    with (folder / "said.jsonl").open("a") as said:
        for name, kind, content in questions(folder, facts):
            began = time.time()
            sent = content(grid, node) if callable(content) else ask(grid, node, kind, content)
            answer = wait_for(grid, sent)
            said.write(json.dumps({"question": name, "seconds": round(time.time() - began, 1), **answer}) + "\n")
            said.flush()
        said.write(json.dumps({"question": "end"}) + "\n")


def ask(grid, node: int, kind: str, content: RecordDict) -> str:
    (sent,) = grid.push_messages([Message(content, dst_node_id=node, message_type=kind, ttl=LIMIT_S)])
    return sent


def wait_for(grid, sent: str) -> dict:
    """The answer in short: its code or word, or the hash of its weights."""
    ends = time.time() + LIMIT_S
    while time.time() < ends:
        for reply in grid.pull_messages([sent]):
            if reply.has_error():
                return {"code": f"error:{reply.error.reason}"}
            if "decision" in reply.content:
                return {"code": reply.content["decision"]["state"]}
            tensors = {n: np.frombuffer(a.data, "<f4").reshape(a.shape) for n, a in reply.content["tensors"].items()}
            return {"code": reply.content["header"]["code"], "weights": weights_sha256(tensors) if tensors else None}
        time.sleep(0.5)
    return {"code": "nothing"}


def questions(folder: Path, facts: dict):
    """(name, kind, records or a way to send them)."""
    network, manifest = load_checkpoint(folder / "start.safetensors")
    start = {name: network[name] for name in manifest["exchanged"]}
    first = sorted(start)[0]
    honest = Broadcast(
        study_sha256=facts["study_sha256"],
        run_id="run",
        round=1,
        weights=start,
        architecture_sha256=manifest["architecture_sha256"],
    )

    def train(**changes) -> RecordDict:
        return record_of(pack_broadcast(Broadcast(**{**vars(honest), **changes})))

    def proposal(text: str, sha256: str) -> RecordDict:
        fields = {"protocol": facts["protocol"], "study_sha256": sha256, "study": text}
        return RecordDict({"proposal": ConfigRecord(fields)})

    other = {name: array + np.float32(0.01) for name, array in start.items()}
    yield "unapproved", "train", train(study_sha256=facts["dear_sha256"])
    yield "architecture", "train", train(architecture_sha256="b" * 64)
    yield "shape", "train", train(weights={**start, first: np.zeros((7, 7), np.float32)})
    broken = train()
    array = broken["tensors"][first]
    nan = np.full(array.shape, np.nan, "<f4").tobytes()
    broken["tensors"] = ArrayRecord(
        {**dict(broken["tensors"].items()), first: Array("float32", array.shape, "raw", nan)}
    )
    yield "nan", "train", broken
    yield "round 1", "train", train()
    yield "round 1 again", "train", train()
    yield "round 1, other weights", "train", train(weights=other)
    yield "round 2", "train", train(round=2, weights=other)
    yield "round 1 after 2, other weights", "train", train(weights=other)
    yield "figures", "evaluate", train(round=3)
    yield "own question", "train.own", RecordDict({})
    text = facts["study"]
    yield (
        "altered proposal",
        "query.propose",
        proposal(text.replace('"rounds": 2', '"rounds": 3'), facts["study_sha256"]),
    )
    yield "proposal, 1 MB", "query.propose", proposal(text + " " * 2**20, facts["study_sha256"])
    yield "last proposal", "query.propose", proposal(facts["dear"], facts["dear_sha256"])
    yield "one too many", "query.propose", proposal(facts["more"], facts["more_sha256"])
    yield "proposal, 300 MB", "query.propose", proposal("x" * (300 * 2**20), facts["study_sha256"])
    bomb = train()
    bomb["tensors"] = ArrayRecord({"w": Bomb("float32", (TEN_GB // 4,), "raw", bytes(PIECE_BYTES))})
    yield "bomb", "train", bomb
    yield "10 GB", "train", ten_gb
    yield "still there", "query.own", RecordDict({})


def ten_gb(grid, node: int) -> str:
    """Announce ten gigabytes in pieces and send as many as the hospital takes."""

    def piece(number: int) -> bytes:
        return b"ArrayChunk  %d\x00" % PIECE_BYTES + number.to_bytes(8, "little") + b"x" * (PIECE_BYTES - 8)

    count = 260  # 1.3 GiB of them are there to be taken; the others are announced only
    names = [hashlib.sha256(piece(number)).hexdigest() for number in range(count)]
    names += [hashlib.sha256(b"%d" % number).hexdigest() for number in range(TEN_GB // PIECE_BYTES - count)]
    content = b"Message %s 4\x00junk" % ",".join(names).encode()
    root = hashlib.sha256(content).hexdigest()
    tree = ObjectTree(object_id=root, children=[ObjectTree(object_id=name) for name in names])
    run = grid.run.run_id
    fields = {"run_id": run, "message_id": "", "src_node_id": 1, "dst_node_id": node, "reply_to_message_id": ""}
    metadata = Metadata(**fields, group_id="1", message_type="train", created_at=time.time(), ttl=LIMIT_S)
    message = make_message(metadata=metadata, error=Error(code=0, reason=""))
    message.metadata.__dict__["_message_id"] = root
    proto = message_to_proto(remove_content_from_message(message))
    answer = grid._runtime_client.PushMessages(
        PushAppMessagesRequest(messages_list=[proto], message_object_trees=[tree])
    )
    for number in [None, *range(count)]:
        name, whole = (root, content) if number is None else (names[number], piece(number))
        request = PushObjectRequest(
            node=Node(node_id=1), run_id=run, object_id=name, object_content=whole, session_id=answer.session_id
        )
        grid._runtime_client.PushObject(request)
    return root


class Bomb(Array):
    """Flower's array of one piece, whose list of pieces names it again and again."""

    def deflate(self) -> bytes:
        head, body = super().deflate().split(b"\x00", 1)
        body = json.dumps({**json.loads(body), "arraychunk_ids": [0] * (TEN_GB // PIECE_BYTES)}).encode()
        kind, pieces, _ = head.split(b" ")
        return b"%s %s %d\x00%s" % (kind, pieces, len(body), body)


Bomb.__qualname__ = "Array"
