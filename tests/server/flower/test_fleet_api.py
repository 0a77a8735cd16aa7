"""The limits on what either side may send fit the installed Flower. test_hostile.py contains the attacks."""

from __future__ import annotations

import hashlib
import inspect
import json
import time
from pathlib import Path

import pytest
from flwr.app import Array, ArrayRecord, Context, Error, Message, Metadata, RecordDict
from flwr.app.message import make_message, remove_content_from_message
from flwr.common.constant import NOOP_FLWR_AID
from flwr.common.serde import context_to_proto, fab_to_proto, message_to_proto, run_to_proto
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.proto.message_pb2 import ObjectTree, PullObjectResponse, PushObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import PullAppMessagesResponse, PullTaskInputResponse
from flwr.server.superlink.fleet.grpc_rere.fleet_servicer import FleetServicer
from flwr.server.superlink.linkstate.sql_linkstate import SqlLinkState
from flwr.supercore.constant import NOOP_ACCOUNT_NAME, NOOP_FEDERATION_ID, TaskType
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.config_loader import get_federation_manager, get_objectstore_linkstate_factories
from flwr.supernode import start_client_internal
from flwr.supernode.runtime import run_clientapp

from wardround.errors import WireError
from wardround.flower.array_limit import arrays_at_most
from wardround.records.audit_log import verified
from wardround_client.flower import message_limit, task_process
from wardround_server.flower import fleet_api

MB = 2**20
SERVER = 1


class Link:
    """A SuperLink's state with a run at work, and two sites that speak to it through the bounds. No network."""

    def __init__(self, folder: Path, tensors: int, network_bytes: int) -> None:
        start = folder / "runs" / "run" / "start.safetensors"
        start.parent.mkdir(parents=True)
        header = json.dumps({f"w{number}": {} for number in range(tensors)}).encode()
        start.write_bytes(len(header).to_bytes(8, "little") + header + bytes(network_bytes))
        store, factory = get_objectstore_linkstate_factories(str(folder / "link.db"), get_federation_manager())
        self.state = factory.state()
        self.fleet = fleet_api.BoundedFleet(factory, store, True)
        kind = str(TaskType.SERVER_APP)
        self.run = self.state.create_run("x/x", "1", "hash", {}, NOOP_FEDERATION_ID, None, NOOP_FLWR_AID, kind)
        (task,) = self.state.get_tasks(run_ids=[self.run])
        assert self.state.claim_task(task.task_id) and self.state.activate_task(task.task_id)
        self.east, self.west = (self.site(name) for name in ("east", "west"))

    def site(self, name: str) -> int:
        node = self.state.create_node(NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, name.encode(), 30)
        self.state.activate_node(node, 30)
        return node

    def message(self, src: int, dst: int, asked: str = "", content=None):
        fields = {"run_id": self.run, "message_id": "", "src_node_id": src, "dst_node_id": dst, "message_type": "train"}
        times = {"created_at": time.time(), "ttl": 60.0 if not asked else 50.0}
        metadata = Metadata(**fields, **times, reply_to_message_id=asked, group_id="1")
        made = make_message(metadata=metadata, content=content, error=None if content else Error(code=0, reason=""))
        made.metadata.__dict__["_message_id"] = made.object_id
        return made

    def ask(self, node: int) -> str:
        return self.state.store_message_ins(self.message(SERVER, node))

    def begin(self, node: int, message, tree: ObjectTree | None = None):
        request = PushMessagesRequest(
            node=Node(node_id=node),
            messages_list=[
                message_to_proto(remove_content_from_message(message) if message.has_content() else message)
            ],
            message_object_trees=[tree or get_object_tree(message)],
        )
        return self.fleet.PushMessages(request, None)

    def push(self, node: int, session: str, name: str, content: bytes) -> bool:
        request = PushObjectRequest(
            node=Node(node_id=node), run_id=self.run, object_id=name, object_content=content, session_id=session
        )
        return self.fleet.PushObject(request, None).stored

    def answer(self, node: int, message, most: int = 1000) -> list[bool]:
        """Begin, and push up to `most` of the pieces asked for; which were taken."""
        begun, objects = self.begin(node, message), get_all_nested_objects(message)
        names = list(begun.objects_to_push)[:most]
        return [self.push(node, begun.session_id, name, objects[name].deflate()) for name in names]

    def answers(self, asked: str) -> list:
        return self.state.get_message_res({asked}, self.run)

    def stored_bytes(self) -> int:
        with self.state.session() as session:
            from sqlalchemy import text

            return session.execute(text("SELECT COALESCE(SUM(LENGTH(content)), 0) FROM objects")).scalar()


def arrays(megabytes: int, value: int = 1) -> RecordDict:
    """An array of so many pieces of 1 MiB and a bit, none like another."""
    data = b"".join(bytes([value]) * 8 + number.to_bytes(8, "little") + bytes(MB - 16) for number in range(megabytes))
    return RecordDict({"tensors": ArrayRecord({"w": Array("uint8", (len(data),), "raw", data)})})


@pytest.fixture
def link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Link:
    monkeypatch.setenv("WARDROUND_SERVER", str(tmp_path))
    return Link(tmp_path, tensors=1, network_bytes=12 * MB)


def test_an_answer_is_there_when_all_of_it_is_and_only_once(link: Link) -> None:
    asked = link.ask(link.west)
    whole = link.message(link.west, SERVER, asked, arrays(12))
    assert link.answer(link.west, whole, most=3) == [True] * 3 and link.answers(asked) == []
    kept = link.stored_bytes()
    assert all(link.answer(link.west, whole)), "after a cut it goes on"
    assert link.stored_bytes() > kept > 0
    other = link.message(link.west, SERVER, asked, arrays(2, value=2))
    link.answer(link.west, other)
    assert link.answer(link.west, whole) == [], "the same once more costs nothing"
    (found,) = link.answers(asked)
    assert found.metadata.message_id == whole.metadata.message_id
    link.state.object_store.delete(whole.metadata.message_id)
    assert link.stored_bytes() == 0, "the other one left nothing"


def test_a_site_speaks_for_nobody_else(link: Link) -> None:
    to_east, to_west = link.ask(link.east), link.ask(link.west)
    forged = (
        link.message(SERVER, SERVER, "", arrays(1)),
        link.message(SERVER, link.east, "", arrays(1)),
        link.message(link.east, SERVER, to_east, arrays(1)),
        link.message(link.west, SERVER, to_east, arrays(1)),
        link.message(link.west, link.east, to_west, arrays(1)),
        link.message(link.east, SERVER, to_west, arrays(1)),
        link.message(link.west, SERVER, "0" * 64, arrays(1)),
    )
    for message in forged:
        assert link.answer(link.west, message) == []
    assert link.answers(to_east) == link.answers(to_west) == [] and link.stored_bytes() == 0
    assert link.state.get_message_ins(SERVER, None) == []
    theirs = link.message(link.east, SERVER, to_east, arrays(1))
    begun, objects = link.begin(link.east, theirs), get_all_nested_objects(theirs)
    for session in (begun.session_id, ""):
        name = begun.objects_to_push[0]
        assert not link.push(link.west, session, name, objects[name].deflate())


def test_an_answer_larger_than_a_network_is_thrown_away_and_named(link: Link) -> None:
    asked = link.ask(link.west)
    taken = link.answer(link.west, link.message(link.west, SERVER, asked, arrays(25)))
    assert taken.count(True) == 3 and not any(taken[3:]), "12 MB of network, 8 of allowance, pieces of 5 and a bit"
    (found,) = link.answers(asked)
    assert found.error.code == fleet_api.TOO_LARGE and link.stored_bytes() < 1000


def test_an_answer_in_more_pieces_than_a_network_has_is_not_begun(link: Link) -> None:
    asked = link.ask(link.west)
    whole = link.message(link.west, SERVER, asked, arrays(1))
    tree = ObjectTree(
        object_id=whole.metadata.message_id, children=[ObjectTree(object_id=f"{number:064d}") for number in range(100)]
    )
    assert list(link.begin(link.west, whole, tree).objects_to_push) == []
    (found,) = link.answers(asked)
    assert found.error.code == fleet_api.TOO_LARGE


def test_flower_has_what_the_bounds_replace() -> None:
    started = inspect.getsource(fleet_api.inside._run_fleet_api_grpc_rere)
    for name in ("FleetServicer(", "generic_create_grpc_server(", "max_message_length=GRPC_MAX_MESSAGE_LENGTH"):
        assert name in started
    assert "max_concurrent_workers" in inspect.signature(fleet_api.inside.generic_create_grpc_server).parameters
    for name in ("ActivateNode", "PushMessages", "PushObject"):
        ours, theirs = (inspect.signature(getattr(one, name)) for one in (fleet_api.BoundedFleet, FleetServicer))
        assert list(ours.parameters) == list(theirs.parameters)
    for name in (
        "start_session", "preregister_object_tree", "store_message_res", "get_valid_message_ins", "object_store",
        "_store_generated_message", "_cleanup_push_session", "add_clientapp_runtime",
    ):  # fmt: skip
        assert hasattr(SqlLinkState, name)


def test_flower_has_what_the_supernodes_bound_replaces() -> None:
    assert "with _init_connection(" in inspect.getsource(start_client_internal.start_client_internal)
    assert "GRPC_MAX_MESSAGE_LENGTH," in inspect.getsource(message_limit.inside._init_connection)
    link = [object() for _ in range(8)]
    given = message_limit.BoundedLink(None, link).functions()
    assert [one is other for one, other in zip(link, given, strict=True)] == [n not in (1, 3, 4, 5) for n in range(8)]


def test_an_array_of_equal_pieces_grows_no_further_than_the_bound_and_many_share_it() -> None:
    """Zeros of any size travel as one piece, so what was sent says nothing of what comes of it."""
    array = Array("float32", (11 * MB // 4,), "raw", bytes(11 * MB))
    sent = {name: one.deflate() for name, one in get_all_nested_objects(array).items()}
    assert sum(map(len, sent.values())) < 7 * MB

    def together() -> bytes:
        return inflate_object_from_contents(array.object_id, dict(sent)).data

    with arrays_at_most(11 * MB):
        assert together() == bytes(11 * MB)
        with pytest.raises(WireError) as refused:
            together()
    assert refused.value.code == "size"
    assert len(together()) == 11 * MB, "outside the block Flower is as it was"


@pytest.mark.parametrize("content", [b"Message  4\x00junk", b"Message x 4\x00junk", b""])
def test_a_message_that_cannot_be_put_together_has_somebody_who_answers_it(content: bytes, monkeypatch) -> None:
    """Flower's own way raises, and the SuperNode would wait for an answer for ever."""
    for name, number in (("_task_id", 7), ("_run_id", 1), ("_node_id", 2)):
        monkeypatch.setattr(TaskIdentity, name, number)
    asked = Message(RecordDict(), dst_node_id=2, message_type="train", ttl=60.0)
    asked.metadata.__dict__["_message_id"] = "asked"

    class Client:
        """The SuperNode's interface as a task sees it, over one message."""

        def PullTaskInput(self, request):
            context = Context(run_id=1, node_id=2, node_config={}, state=RecordDict(), run_config={})
            run, fab = run_to_proto(Run.create_empty(1)), fab_to_proto(Fab("hash", b"bundle", {}))
            return PullTaskInputResponse(context=context_to_proto(context), run=run, fab=fab, task_id=7)

        def PullMessages(self, request):
            tree = ObjectTree(object_id="0" * 64)
            return PullAppMessagesResponse(messages_list=[message_to_proto(asked)], message_object_trees=[tree])

        def PullObject(self, request):
            return PullObjectResponse(object_found=True, object_available=True, object_content=content)

        def ConfirmMessageReceived(self, request):
            return None

    with pytest.raises(Exception):  # noqa: B017
        run_clientapp.pull_task_input(Client())
    message, context, run, fab = task_process.pull_or_first_message(run_clientapp.pull_task_input, Client())
    assert (message.metadata.message_type, message.metadata.message_id) == ("train", "0" * 64)
    assert len(message.content) == 0 and (context.run_id, run.run_id, fab.content) == (1, 1, b"bundle")


def test_a_hospital_lets_go_of_a_question_that_is_too_large_or_over_and_goes_on(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(message_limit, "MOST_BYTES", 3000)
    for name, number in (("_task_id", 7), ("_run_id", 1), ("_node_id", 2)):
        monkeypatch.setattr(TaskIdentity, name, number)
    sent: list[Message] = []

    def question(ttl: float) -> Message:
        made = Message(RecordDict(), dst_node_id=2, message_type="train", ttl=ttl)
        made.metadata.__dict__["_message_id"] = hashlib.sha256(str(ttl).encode()).hexdigest()
        return made

    questions = [question(60.0), question(1e-9)]
    waiting = [(one, ObjectTree(object_id=one.metadata.message_id)) for one in questions]
    link = (
        2, lambda: waiting.pop(0) if waiting else None, lambda message, tree, s: (sent.append(message), (set(), ""))[1],
        None, None, lambda run, name: bytes(1000), None, None,
    )  # fmt: skip
    _, receive, _, _, _, pull, _, _ = message_limit.BoundedLink(tmp_path, link).functions()
    receive()
    assert [len(pull(1, "piece")) for _ in range(3)] == [1000] * 3 and sent == []
    with pytest.raises(ValueError, match="has more than 3000 bytes"):
        pull(1, "piece")
    receive()
    (refusal,) = sent
    asked = hashlib.sha256(b"60.0").hexdigest()
    assert refusal.content["header"]["code"] == "too_large" and refusal.metadata.reply_to_message_id == asked
    assert [entry["code"] for entry in verified(tmp_path / "audit.jsonl").entries] == ["too_large"]
    with pytest.raises(ValueError, match="ended before all of it"):
        pull(1, "piece")
    assert receive() is None and len(sent) == 1
