"""Limits on the data that a server can put into the memory of this hospital's SuperNode.

By default the SuperNode receives all pieces of a message before any code of the site checks it; a server could send
tens of gigabytes. This module limits a call to 8 MiB (Flower sends pieces of 5) and a message to `MOST_BYTES`; a larger
message is dropped, recorded in the audit log and answered with a code. `task_process.py` limits the size to which its
pieces may grow when they are put together.

Of a run, only its number and the declared kind of its task are kept. Its bundle is not requested: no code of it runs
here, and Flower would unzip a part of it in this process, however large that becomes. Of the records kept for each run
and task, the oldest are removed. A message whose labels do not have the format that Flower generates is dropped,
because labels are printed.
"""

from __future__ import annotations

import hashlib
import logging
import math
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
from flwr.app import Message
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.constant import TaskType
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode import start_client_internal as inside
from flwr.supernode.nodestate import nodestate_factory
from flwr.supernode.nodestate.in_memory_nodestate import InMemoryNodeState

from wardround.wire.protocol import CALL_BYTES
from wardround_client.flower.task_process import MOST_BYTES

RUNS_KEPT = 64  # in memory at once; a run that was removed is requested again
NO_BUNDLE = Fab(hashlib.sha256(b"").hexdigest(), b"", {})
NO_BUNDLES_NAME, NO_BUNDLES_VERSION = "wardround/installed", "0"  # in the format that Flower requires
# The labels of a message, which Flower prints unchanged. The limit of `message_type` fits every type that Flower's own
# servers send.
_LABELS = {
    "message_id": re.compile(r"[0-9a-f]{64}"),
    "reply_to_message_id": re.compile(""),
    "group_id": re.compile(r"[0-9]{0,20}"),
    "message_type": re.compile(r"[A-Za-z0-9_.]{1,100}"),
}

log = logging.getLogger("flwr.wardround")


class BoundedLink:
    """The SuperNode's connection to the server, which counts the bytes of the message being received."""

    def __init__(self, folder: Path, link: Sequence[Any]) -> None:
        self._folder = folder
        self._node, self._receive, self._send, self._run, self._fab, self._pull, self._push, self._confirm = link
        self._question: Message | None = None
        self._arrived = 0
        self._refused = False
        self._guard = threading.Lock()

    def functions(self) -> tuple[Any, ...]:
        """Return the connection's functions in the order that the SuperNode expects."""
        return (
            self._node,
            self.receive,
            self._send,
            self.run,
            self.bundle,
            self.pull_object,
            self._push,
            self._confirm,
        )

    def receive(self) -> Any:
        """Return the next message, after refusing the last one if that was too large."""
        if self._refused and self._question is not None:
            self._refuse(self._question)
        self._question, self._arrived, self._refused = None, 0, False
        received = self._receive()
        if received is None:
            return None
        if not well_labelled(*received):
            from wardround_client.flower.site_app import recorded

            log.error("a request was refused: its labels do not have Flower's format")
            recorded(self._folder, "labels")
            return None
        self._question = received[0]
        return received

    def run(self, run_id: int) -> Run:
        """Return a run that keeps one fact from the server: whether it is an agent's run.

        `task_process.py` refuses the tasks of an agent's run.
        """
        agent = self._run(run_id).primary_task_type == TaskType.AGENT_APP
        run = Run.create_empty(run_id)
        run.fab_id, run.fab_version, run.fab_hash = NO_BUNDLES_NAME, NO_BUNDLES_VERSION, NO_BUNDLE.hash_str
        run.primary_task_type = TaskType.AGENT_APP if agent else TaskType.SERVER_APP
        run.series_id = run_id
        return run

    def bundle(self, fab_hash: str, run_id: int) -> Fab:
        """Return the empty bundle without contacting the server."""
        return NO_BUNDLE

    def pull_object(self, run_id: int, object_id: str) -> bytes:
        """Return one piece of the message.

        If this raises, the SuperNode drops the message.

        Raises:
            ValueError: The message is too large, or has expired before all of it arrived.
            grpc.RpcError: The call failed.
        """
        if (
            self._question is not None
            and time.time() > self._question.metadata.created_at + self._question.metadata.ttl
        ):
            raise ValueError("the server's request ended before all of it was received")
        try:
            content = self._pull(run_id, object_id)
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED:
                self._refused = True
            raise
        with self._guard:
            self._arrived += len(content)
            self._refused = self._refused or self._arrived > MOST_BYTES
        if self._refused:
            raise ValueError(f"the server's request has more than {MOST_BYTES} bytes")
        return content

    def _refuse(self, question: Message) -> None:
        from wardround_client.flower.site_app import recorded_refusal

        log.error("a request was refused: it, or one of its parts, has too many bytes")
        for name, number in (("_task_id", 0), ("_run_id", question.metadata.run_id), ("_node_id", self._node)):
            setattr(TaskIdentity, name, number)  # the identity under which Flower sends the reply
        reply = recorded_refusal(self._folder, question, "too_large")
        reply.metadata.__dict__["_message_id"] = reply.object_id
        objects = get_all_nested_objects(reply)
        wanted, session = self._send(reply, get_object_tree(reply), 0.0)
        for name in wanted:
            self._push(question.metadata.run_id, session, name, objects[name].deflate())


def well_labelled(question: Message, tree: ObjectTree) -> bool:
    """Return whether a message's labels may be printed, it expires, and its pieces belong to it."""
    labels = question.metadata
    texts = all(form.fullmatch(getattr(labels, name)) for name, form in _LABELS.items())
    return texts and math.isfinite(labels.created_at + labels.ttl) and tree.object_id == labels.message_id


class BoundedState(InMemoryNodeState):
    """The SuperNode's state, limited to the newest `RUNS_KEPT` runs and the unfinished tasks.

    The SuperNode answers one message at a time, and stores or looks up a message's run before it makes the task. The
    run of a task at work is therefore never removed.
    """

    def store_run(self, run: Run) -> None:
        super().store_run(run)
        with self.lock_run_store, self.lock_run_series_context_store:
            for number in list(self.run_store)[:-RUNS_KEPT]:
                self.run_series_context_store.pop(self.run_store.pop(number).series_id, None)

    def create_task(self, *args: Any, **kwargs: Any) -> int | None:
        with self.lock_task_store:
            for number in [number for number, task in self.task_store.items() if task.finished_at]:
                del self.task_store[number]
        return super().create_task(*args, **kwargs)


def bound_the_link(folder: Path) -> None:
    """Make the SuperNode of this process use `BoundedLink` and `BoundedState`, and read no bundle."""
    plain: Callable[..., Any] = inside._init_connection

    @contextmanager
    def bounded(*args: Any, **kwargs: Any) -> Iterator[tuple[Any, ...]]:
        with plain(*args, **kwargs) as link:
            yield BoundedLink(folder, link).functions()

    inside._init_connection = bounded
    inside.GRPC_MAX_MESSAGE_LENGTH = CALL_BYTES
    inside.get_fused_config_from_fab = lambda *bundle_and_run: {}
    nodestate_factory.InMemoryNodeState = BoundedState  # type: ignore[misc]  # a class of Flower's is replaced
