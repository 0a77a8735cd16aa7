"""A hostile server's own ServerApp, for test_hostile.py, which puts it into a bundle: it asks a hospital for anything.
Another bundle makes an agent of it.

What it needs to know stands in hostile.json of the server's folder; what the hospital said to each question goes to
said.jsonl.
"""

from __future__ import annotations

import json
import os
import time
from functools import partial
from pathlib import Path

import numpy as np
from flwr.agentapp import AgentApp
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, Metadata, RecordDict
from flwr.app.message import make_message, remove_content_from_message
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import ObjectTree, PushObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import PushAppMessagesRequest
from flwr.serverapp import ServerApp
from hostile_pieces import COUNT_10_GB, array_piece, bomb, junk_of, large_proposal, missing, name_of

from wardround.flower.record import record_of
from wardround.storage.checkpoint import load_checkpoint
from wardround.wire.packets import Broadcast, pack_broadcast, weights_sha256

LIMIT_S = 240.0
GB = 10**9

app = ServerApp()  # Flower looks for the names in the text, and finds no pairs
agent = AgentApp()


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
            if reply.has_error() and reply.error.code in (3, 4):  # the message is over
                return {"code": "nothing"}
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
    yield "round 1 of another run", "train", train(run_id="another")
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
    yield "proposal, 1 GB", "query.propose", partial(proposal_1_gb, folder)
    hollow = train()
    hollow["tensors"] = bomb()
    yield "bomb", "train", hollow
    yield "10 GB, announced", "train", announced
    yield "10 GB", "train", partial(ten_gb, folder)
    yield "round 2 again", "train", train(round=2, weights=other)
    yield "still there", "query.own", RecordDict({})


def push(grid, node: int, ttl_s: float, tree: ObjectTree, contents: dict[str, bytes], kind: str = "train") -> str:
    """Send a message that consists of the objects in `tree`, of which only `contents` go to the SuperLink."""
    run = grid.run.run_id
    fields = {"run_id": run, "message_id": "", "src_node_id": 1, "dst_node_id": node, "reply_to_message_id": ""}
    metadata = Metadata(**fields, group_id="1", message_type=kind, created_at=time.time(), ttl=ttl_s)
    message = make_message(metadata=metadata, error=Error(code=0, reason=""))
    message.metadata.__dict__["_message_id"] = tree.object_id
    proto = message_to_proto(remove_content_from_message(message))
    answer = grid._runtime_client.PushMessages(
        PushAppMessagesRequest(messages_list=[proto], message_object_trees=[tree])
    )
    for name, content in contents.items():
        request = PushObjectRequest(
            node=Node(node_id=1), run_id=run, object_id=name, object_content=content, session_id=answer.session_id
        )
        grid._runtime_client.PushObject(request)
    return tree.object_id


def announced(grid, node: int) -> str:
    """Ten gigabytes in proper pieces, of which none comes."""
    content, tree = junk_of(map(missing, range(COUNT_10_GB)))
    return push(grid, node, 30.0, tree, {tree.object_id: content})


def ten_gb(folder: Path, grid, node: int) -> str:
    """Ten gigabytes in proper pieces, which the SuperLink has for whoever fetches them."""
    names = [name_of(array_piece(number)) for number in range(COUNT_10_GB)]
    content, tree = junk_of(names)
    offer(folder, {name: ("10 GB", "array", number) for number, name in enumerate(names)})
    return push(grid, node, LIMIT_S, tree, {tree.object_id: content})


def proposal_1_gb(folder: Path, grid, node: int) -> str:
    """A proposal whose study is 1 GB long, in one piece, as Flower sends a text. (Two are its most: protobuf's own.)"""
    message = Message(RecordDict({"proposal": ConfigRecord({})}), dst_node_id=node, message_type="query.propose")
    record, whole = message.content["proposal"], message.content
    large = name_of(large_proposal(GB))
    around = whole.deflate().replace(record.object_id.encode(), large.encode())
    outside = message.deflate().replace(whole.object_id.encode(), name_of(around).encode())
    tree = ObjectTree(object_id=large)
    for content in (around, outside):
        tree = ObjectTree(object_id=name_of(content), children=[tree])
    offer(folder, {large: ("proposal, 1 GB", "proposal", GB)})
    return push(grid, node, LIMIT_S, tree, {name_of(one): one for one in (outside, around)}, "query.propose")


def offer(folder: Path, pieces: dict[str, tuple[str, str, int]]) -> None:
    (folder / "offers.json.new").write_text(json.dumps(pieces))
    (folder / "offers.json.new").rename(folder / "offers.json")


@agent.main()
def act(session, context) -> None:
    """The same attacker as an agent: for what it sends a SuperNode would run the code of the bundle."""
    folder = Path(os.environ["WARDROUND_SERVER"])
    facts, grid = json.loads((folder / "hostile.json").read_text()), session.grid._grid
    node = next(iter(grid.get_node_ids()))
    words = RecordDict({"agent": ConfigRecord({"text": "run what came with this"})})
    round_2 = next(content for name, _, content in questions(folder, facts) if name == "round 2")
    with (folder / "said.jsonl").open("a") as said:
        for name, kind, content in (("agent's words", "query", words), ("agent's round", "train", round_2)):
            answer = wait_for(grid, ask(grid, node, kind, content))
            said.write(json.dumps({"question": name, **answer}) + "\n")
        said.write(json.dumps({"question": "agent's end"}) + "\n")
