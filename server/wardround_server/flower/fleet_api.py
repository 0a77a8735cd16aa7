"""Flower's Fleet API with limits on what a hospital may send, and all replacements of Flower's parts that this needs.

Flower checks that a call is signed with a registered key, but validates little of the call's content. Without the
limits, the holder of any key could act as the server or as another site, fill the server's disk, and delay a round for
hours with a reply that never ends. With them, a site may

    activate   only the node of the key that signed the call
    reply      to a request that was sent to this site and is still open, once, under its own node id
    send       as many objects and bytes as the largest network among this server's runs has, plus an allowance

and a reply becomes visible to the server's other processes only after all of it has arrived. A reply that grows too
large is discarded and replaced by an error that names the fault; an unfinished reply is discarded when the site begins
its next one.

    python -I -m wardround_server.flower.fleet_api flower-superlink ARGUMENTS_OF_FLOWER
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import grpc
from flwr.app import Error, Metadata
from flwr.app.message import make_message
from flwr.common.constant import PUBLIC_KEY_HEADER, SUPERLINK_NODE_ID
from flwr.common.serde import message_from_proto
from flwr.proto.fleet_pb2 import PushMessagesResponse
from flwr.proto.message_pb2 import PushObjectResponse
from flwr.server.superlink.fleet.grpc_rere.fleet_servicer import FleetServicer
from flwr.supercore.date import now
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.superlink.cli import flower_superlink

from wardround.wire.protocol import CALL_BYTES, PIECE_BYTES
from wardround_server.flower.exchange import TOO_LARGE
from wardround_server.flower.superlink import SERVER_FOLDER
from wardround_server.runs.folder import largest_network

ALLOWANCE_BYTES = 8 * 2**20  # besides the tensors: names, shapes and the hashes that link the objects of a reply
ALLOWANCE_OBJECTS = 16  # the message and its records; kept low since the database blocks while it handles each object
CALLS_AT_ONCE = 100

inside = sys.modules[flower_superlink.__module__]  # the module, whose name in the package refers to the function

log = logging.getLogger("flwr.wardround")


@dataclass(kw_only=True)
class Upload:
    """A reply in transfer: its sender, the ids of the objects still missing (`left`) and the bytes received so far."""

    node: int
    message: Any
    question: dict[str, Any]
    left: set[str]
    limit: int
    arrived: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


class BoundedFleet(FleetServicer):
    """Flower's Fleet API with the limits of this module.

    Every caller has already proved possession of the key of `request.node`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._uploads: dict[str, Upload] = {}  # by Flower's session id
        self._guard = threading.Lock()

    def ActivateNode(self, request: Any, context: grpc.ServicerContext) -> Any:
        """Activate a node. Only the holder of its key may: anyone else could lock its hospital out permanently."""
        if dict(context.invocation_metadata()).get(PUBLIC_KEY_HEADER) != request.public_key:
            log.warning("a connection was refused: the request names a public key that is not the caller's")
            context.abort(grpc.StatusCode.PERMISSION_DENIED, "the public key is not the caller's")
        return super().ActivateNode(request, context)

    def PushMessages(self, request: Any, context: grpc.ServicerContext) -> Any:
        """Begin a reply.

        A reply that does not belong to an open request to its sender is not stored; Flower's own client continues
        without an error.
        """
        state, node = self.state_factory.state(), request.node.node_id
        nothing = PushMessagesResponse(objects_to_push=[])
        if len(request.messages_list) != 1 or len(request.message_object_trees) != 1:
            return nothing
        message, tree = message_from_proto(request.messages_list[0]), request.message_object_trees[0]
        question = self._question_of(message, node)
        if question is None or tree.object_id != message.metadata.message_id:
            log.warning("node %s sent a reply to no open request; it is discarded", node)
            return nothing
        tensors, size = largest_network(Path(os.environ[SERVER_FOLDER]))
        if sum(1 for _ in iterate_object_tree(tree)) > 2 * tensors + size // PIECE_BYTES + ALLOWANCE_OBJECTS:
            log.warning("node %s announced more objects than a network has; its reply is discarded", node)
            self._say_too_large(question, node)
            return nothing
        arrived = self._make_room(node, tree.object_id)
        session = state.start_session(message.metadata.run_id)
        missing = state.preregister_object_tree(tree, session)
        limit = size + ALLOWANCE_BYTES
        upload = Upload(node=node, message=message, question=question, left=set(missing), limit=limit, arrived=arrived)
        with self._guard:
            self._uploads[session] = upload
        self._finish_if_whole(session, upload)
        if request.clientapp_runtime_list:
            state.add_clientapp_runtime(message.metadata.run_id, request.clientapp_runtime_list[0])
        return PushMessagesResponse(objects_to_push=missing, session_id=session)

    def PushObject(self, request: Any, context: grpc.ServicerContext) -> Any:
        """Store one object of a reply that this node began."""
        with self._guard:
            upload = self._uploads.get(request.session_id)
        if upload is None or upload.node != request.node.node_id:
            return PushObjectResponse(stored=False)
        with upload.lock:
            upload.arrived += len(request.object_content)
            too_large = upload.arrived > upload.limit
        if too_large:
            log.warning("node %s sent more than %s bytes; its reply is discarded", upload.node, upload.limit)
            self._forget(request.session_id)
            self._say_too_large(upload.question, upload.node)
            return PushObjectResponse(stored=False)
        response = super().PushObject(request, context)
        with upload.lock:
            if response.stored:
                upload.left.discard(request.object_id)
            else:
                upload.arrived -= len(request.object_content)
        self._finish_if_whole(request.session_id, upload)
        return response

    def _question_of(self, message: Any, node: int) -> dict[str, Any] | None:
        """Return the open request to `node` that the message replies to, or None."""
        said, state = message.metadata, self.state_factory.state()
        if said.src_node_id != node or said.dst_node_id != SUPERLINK_NODE_ID or not said.reply_to_message_id:
            return None
        # This method is private to Flower's SQL store, which is the store that its SuperLink uses.
        question = state.get_valid_message_ins(said.reply_to_message_id)  # type: ignore[attr-defined]
        if question is None or question["dst_node_id"] % 2**64 != node or question["run_id"] % 2**64 != said.run_id:
            return None
        return question

    def _finish_if_whole(self, session: str, upload: Upload) -> None:
        """Once every object has arrived, publish the reply to the server's other processes.

        A reply that comes too late or for the second time is deleted.
        """
        with upload.lock:
            if upload.left:
                return
        with self._guard:
            if self._uploads.pop(session, None) is None:
                return
        state = self.state_factory.state()
        if state.store_message_res(upload.message) is None:
            log.warning("node %s replied twice or too late; its reply is discarded", upload.node)
            state.object_store.delete(upload.message.metadata.message_id)

    def _make_room(self, node: int, root: str) -> int:
        """Discard the unfinished uploads of a node and return the bytes already received of the reply `root`.

        If the node sends the same reply again after its connection broke, the upload continues: the objects received so
        far stay stored and their bytes still count.
        """
        with self._guard:
            begun = [(session, upload) for session, upload in self._uploads.items() if upload.node == node]
            same = [session for session, upload in begun if upload.message.metadata.message_id == root]
            arrived = sum(self._uploads.pop(session).arrived for session in same)
        for session, _ in begun:
            self._forget(session)
        return arrived

    def _forget(self, session: str) -> None:
        """Remove an upload and all of its objects."""
        with self._guard:
            upload = self._uploads.pop(session, None)
        if upload is not None:
            state = self.state_factory.state()
            state._cleanup_push_session(session, cleanup_messages=False)
            state.object_store.delete(upload.message.metadata.message_id)

    def _say_too_large(self, question: dict[str, Any], node: int) -> None:
        """Store an error in place of the site's reply, so that the round gets the cause at once."""
        state, at = self.state_factory.state(), now().timestamp()
        error = make_message(
            metadata=Metadata(
                run_id=question["run_id"] % 2**64,
                message_id="",
                src_node_id=node,
                dst_node_id=SUPERLINK_NODE_ID,
                reply_to_message_id=question["message_id"],
                group_id=question["group_id"],
                message_type=question["message_type"],
                created_at=at,
                ttl=question["created_at"] + question["ttl"] - at,
            ),
            error=Error(code=TOO_LARGE, reason=""),
        )
        error.metadata.__dict__["_message_id"] = error.object_id
        state._store_generated_message(error)  # first: the round may pull it as soon as it is registered
        if state.store_message_res(error) is None:
            state.object_store.delete(error.object_id)


def bound_the_fleet() -> None:
    """Make the SuperLink of this process serve hospitals through `BoundedFleet`."""
    # Flower's module imports these names but does not export them.
    inside.FleetServicer = BoundedFleet  # type: ignore[attr-defined]
    inside.GRPC_MAX_MESSAGE_LENGTH = CALL_BYTES  # type: ignore[attr-defined]
    create = inside.generic_create_grpc_server
    inside.generic_create_grpc_server = partial(create, max_concurrent_workers=CALLS_AT_ONCE)  # type: ignore[attr-defined]


def main(arguments: Sequence[str]) -> None:
    """Run Flower's SuperLink with the limits of this module."""
    bound_the_fleet()
    sys.argv = list(arguments)
    flower_superlink()


if __name__ == "__main__":
    main(sys.argv[1:])
