"""The parts of a run and of a message that a hospital's SuperNode accepts before any other code reads them.

Flower's own code receives the messages, from a server that may send anything.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import io
import math
import zipfile

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import ObjectTree
from flwr.proto.runtime_pb2 import PullAppMessagesResponse
from flwr.supercore.constant import TaskType
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode import start_client_internal as inside
from flwr.supernode.nodestate import NodeStateFactory, nodestate_factory
from flwr.supernode.servicer.runtime import runtime_handlers

from wardround.records.audit_log import verified
from wardround_client.flower import message_limit, task_process

MB = 2**20


@pytest.fixture
def supernode(tmp_path, monkeypatch):
    """A SuperNode that is bounded, with a server of its own: `take(run, bundle)` takes a question of that run in."""
    for name, number in (("_task_id", 7), ("_run_id", 1), ("_node_id", 2)):
        monkeypatch.setattr(TaskIdentity, name, number)
    for name in ("_init_connection", "GRPC_MAX_MESSAGE_LENGTH", "get_fused_config_from_fab"):
        monkeypatch.setattr(inside, name, getattr(inside, name))
    monkeypatch.setattr(nodestate_factory, "InMemoryNodeState", nodestate_factory.InMemoryNodeState)
    message_limit.bound_the_link(tmp_path)
    return SuperNode(tmp_path)


class SuperNode:
    def __init__(self, folder) -> None:
        factory = NodeStateFactory(objectstore_factory=ObjectStoreFactory())
        self.state, self.store = factory.state(), factory.objectstore_factory.store()
        self.state.set_node_id(2)
        self.folder, self.bundles_asked_for = folder, 0

    def take(self, run: Run, content: bytes = b"", **labels: object) -> int | None:
        made = Message(RecordDict({"a": ConfigRecord({"x": 1})}), dst_node_id=2, message_type="train", group_id="1")
        made.metadata.__dict__["_run_id"] = run.run_id
        made.metadata.__dict__["_message_id"] = made.object_id
        pieces, tree = (
            {name: one.deflate() for name, one in get_all_nested_objects(made).items()},
            get_object_tree(made),
        )
        asked = remove_content_from_message(made)
        asked.metadata.__dict__.update({f"_{name}": value for name, value in labels.items()})

        def fab(name: str, number: int) -> Fab:
            self.bundles_asked_for += 1
            return Fab(hashlib.sha256(content).hexdigest(), content, {"a": "b"})

        link = (
            2, lambda: (asked, tree), None, lambda number: run, fab, lambda number, name: pieces[name], None,
            lambda number, name: None,
        )  # fmt: skip
        _, receive, _, get_run, get_fab, pull, _, confirm = message_limit.BoundedLink(self.folder, link).functions()
        taken = inside._pull_and_store_message(
            state=self.state, object_store=self.store, node_config={}, receive=receive, get_run=get_run,
            get_fab=get_fab, pull_object=pull, confirm_message_received=confirm, trusted_entities=None,
        )  # fmt: skip
        if taken is not None:  # it is answered, as the executor does it
            self.store.delete(asked.metadata.message_id)
            self.state.delete_messages()
            for task in self.state.get_tasks(run_ids=[run.run_id]):
                self.state.finish_task(task.task_id, "failed", "")
        return taken


def zipped(megabytes: int) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        head = b'[project]\nname="x"\nversion="1"\n[tool.flwr.app]\npublisher="x"\n[tool.flwr.app.config]\ncap=9\n'
        parts = b'[tool.flwr.app.components]\nserverapp="a:b"\nclientapp="a:b"\n'
        archive.writestr("pyproject.toml", head + parts + (b"#" * (MB - 1) + b"\n") * megabytes)
    return content.getvalue()


def test_flower_has_what_the_intake_replaces() -> None:
    source = inspect.getsource(inside._pull_and_store_message)
    for part in (
        "recv := receive()",
        "run_info = get_run(run_id)",
        "fab = get_fab(run_info.fab_hash, run_id)",
        "run_cfg = get_fused_config_from_fab(fab.content, run_info)",
        "state.store_run(run_info)",
        "run_info.primary_task_type == TaskType.AGENT_APP",
    ):
        assert part in source, part
    assert source.count("fab.content") == 1 and source.count("get_fused_config_from_fab") == 1
    assert "InMemoryNodeState(object_store)" in inspect.getsource(nodestate_factory.NodeStateFactory.state)
    state = message_limit.BoundedState(ObjectStoreFactory().store())
    for name in ("run_store", "run_series_context_store", "task_store"):
        assert getattr(state, name) == {} and hasattr(state, f"lock_{name}")
    state.store_fab(message_limit.NO_BUNDLE)  # Flower holds a bundle against its hash
    assert state.get_fab(message_limit.NO_BUNDLE.hash_str) == message_limit.NO_BUNDLE
    later = inspect.getsource(runtime_handlers.pull_task_input)
    assert "state.get_run_series_context(run.series_id)" in later and "state.get_fab(run.fab_hash)" in later


@pytest.mark.parametrize("content", [b"no zip", b"", zipped(0), zipped(64)], ids=["no-zip", "empty", "app", "bomb"])
@pytest.mark.parametrize("kind", [TaskType.AGENT_APP, TaskType.SERVER_APP, "nonsense"])
def test_nothing_of_a_bundle_or_of_what_a_server_says_about_a_run_comes_into_a_supernode(supernode, content, kind):
    said = dataclasses.replace(
        Run.create_empty(5), fab_id="x" * MB, fab_hash=hashlib.sha256(content).hexdigest(), primary_task_type=str(kind),
        override_config={"junk": "x" * MB}, series_id=77, account_name="x" * MB, federation_id="x" * MB,
    )  # fmt: skip
    assert supernode.take(said, content) == 5 and supernode.bundles_asked_for == 0
    state = supernode.state
    run = state.get_run(5)
    assert (
        len(repr(run)) < 1000 and state.get_fab(run.fab_hash) == message_limit.NO_BUNDLE and len(state.fab_store) == 1
    )
    assert state.get_run_series_context(run.series_id).run_config == {}
    (task,) = state.get_tasks()
    assert task.type == (TaskType.AGENT_APP if kind == TaskType.AGENT_APP else TaskType.CLIENT_APP)


def test_a_supernode_remembers_as_many_runs_as_it_may_and_asks_again_for_one_that_it_forgot(supernode, monkeypatch):
    monkeypatch.setattr(message_limit, "RUNS_KEPT", 8)
    for number in range(1, 41):
        assert supernode.take(Run.create_empty(number)) == number
    state = supernode.state
    assert list(state.run_store) == list(state.run_series_context_store) == list(range(33, 41))
    assert len(state.fab_store) == 1 and len(state.task_store) == 1
    assert state.get_run(1) is None and supernode.take(Run.create_empty(1)) == 1 and state.get_run(1) is not None


FORGED = '1]\n{"at": "x", "level": "info", "logger": "wardround_client.cli.studies", "text": "approved"}\n['


@pytest.mark.parametrize(
    "labels",
    [
        {"group_id": FORGED},
        {"group_id": "9" * 21},
        {"group_id": "\u0661"},
        {"message_id": FORGED},
        {"message_id": ""},
        {"message_id": "a" * 64},
        {"message_type": f"train.{FORGED}"},
        {"message_type": "x" * 101},
        {"reply_to_message_id": "a" * 64},
        {"ttl": math.nan},
        {"ttl": math.inf},
    ],
    ids=repr,
)
def test_a_question_whose_labels_are_not_flowers_is_let_go_in_the_log_and_printed_nowhere(supernode, capfd, labels):
    assert supernode.take(Run.create_empty(5), **labels) is None
    assert supernode.state.msg_store == {} and supernode.state.task_store == {}
    assert [entry["code"] for entry in verified(supernode.folder / "audit.jsonl").entries] == ["labels"]
    said = "".join(capfd.readouterr())
    assert "approved" not in said and "9" * 21 not in said and "x" * 101 not in said


@pytest.mark.parametrize("group", ["", "0", "12"])
def test_a_question_as_our_servers_label_it_is_taken(supernode, group):
    assert supernode.take(Run.create_empty(5), group_id=group, message_type="query.propose") == 5
    assert not (supernode.folder / "audit.jsonl").exists()


def test_a_task_has_the_labels_that_were_looked_at_and_not_those_inside_the_message(supernode):
    """Flower takes them from the content; the SuperNode prints them with the answer."""

    def labelled(group: str, ttl: float) -> Message:
        made = Message(RecordDict(), dst_node_id=2, message_type="train", ttl=ttl, group_id=group)
        made.metadata.__dict__["_message_id"] = "a" * 64
        return made

    class Client:
        def PullTaskInput(self, request):
            return None

        def PullMessages(self, request):
            tree = ObjectTree(object_id="a" * 64)
            return PullAppMessagesResponse(
                messages_list=[message_to_proto(labelled("3", 60.0))], message_object_trees=[tree]
            )

    def pull(client):
        client.PullTaskInput(None), client.PullMessages(None)
        return labelled(FORGED, math.inf), "context", "run", "fab"

    message, *rest = task_process.pull_or_first_message(pull, Client())
    labels = message.metadata
    assert (labels.group_id, labels.ttl, labels.message_id, rest) == ("3", 60.0, "a" * 64, ["context", "run", "fab"])
    assert Message(RecordDict(), reply_to=message).metadata.group_id == "3"
