"""How much a server may put into the memory of this hospital's SuperNode.

As it comes, the SuperNode takes in whatever a question consists of, tens of gigabytes if the server likes, before
anybody here looks at it. Here a call brings 8 MiB at most (Flower sends pieces of 5) and a question `MOST_BYTES`; one
that is larger is let go, written into the audit log and answered with a code. What its pieces may grow to when put
together is for `gate.py`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
from flwr.app import Message
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode import start_client_internal as inside

from wardround_client.gate import MOST_BYTES

CALL_BYTES = 8 * 2**20

log = logging.getLogger("flwr.wardround")


class BoundedLink:
    """The SuperNode's connection to the server, counting the bytes of the question that is on its way."""

    def __init__(self, folder: Path, link: Sequence[Any]) -> None:
        self._folder = folder
        self._node, self._receive, self._send, self._run, self._fab, self._pull, self._push, self._confirm = link
        self._question: Message | None = None
        self._arrived = 0
        self._refused = False
        self._guard = threading.Lock()

    def functions(self) -> tuple[Any, ...]:
        """In the order that the SuperNode expects."""
        return (
            self._node,
            self.receive,
            self._send,
            self._run,
            self._fab,
            self.pull_object,
            self._push,
            self._confirm,
        )

    def receive(self) -> Any:
        """The next question; before it, the refusal of the last one where that was too large."""
        if self._refused and self._question is not None:
            self._refuse(self._question)
        self._question, self._arrived, self._refused = None, 0, False
        received = self._receive()
        if received is not None:
            self._question = received[0]
        return received

    def pull_object(self, run_id: int, object_id: str) -> bytes:
        """One piece of the question. Raises where the question is too large: the SuperNode lets go of it then."""
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
            raise ValueError(f"the server's question has more than {MOST_BYTES} bytes")
        return content

    def _refuse(self, question: Message) -> None:
        from wardround_client.site_app import recorded_refusal

        log.error("a question was refused: it, or a piece of it, has too many bytes")
        for name, number in (("_task_id", 0), ("_run_id", question.metadata.run_id), ("_node_id", self._node)):
            setattr(TaskIdentity, name, number)  # whose answer Flower thinks that this is
        reply = recorded_refusal(self._folder, question, "too_large")
        reply.metadata.__dict__["_message_id"] = reply.object_id
        objects = get_all_nested_objects(reply)
        wanted, session = self._send(reply, get_object_tree(reply), 0.0)
        for name in wanted:
            self._push(question.metadata.run_id, session, name, objects[name].deflate())


def bound_the_link(folder: Path) -> None:
    """From here on the SuperNode of this process talks to its server through `BoundedLink`."""
    plain: Callable[..., Any] = inside._init_connection

    @contextmanager
    def bounded(*args: Any, **kwargs: Any) -> Iterator[tuple[Any, ...]]:
        with plain(*args, **kwargs) as link:
            yield BoundedLink(folder, link).functions()

    inside._init_connection = bounded
    inside.GRPC_MAX_MESSAGE_LENGTH = CALL_BYTES
