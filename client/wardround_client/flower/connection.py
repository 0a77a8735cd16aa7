"""Supervision of the SuperNode: detects dead connections, and ends the process when a part of it ends.

A middlebox that drops a connection notifies neither end: the kernel would detect it after a quarter of an hour, and
until then every call waits. When Flower's main loop or its heartbeat gives up, its process keeps running and appears
healthy. With this module a dead connection is detected within half a minute, each call has a time limit, and the daemon
restarts a process that has ended. A reply whose transmission was cut is resumed; Flower would drop it completely.

`supernode.py` uses two functions: `watch_the_connection` and `end_with_any_part`.
"""

from __future__ import annotations

import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import grpc
from flwr.client.grpc_rere_client import connection
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError
from flwr.supernode import start_client_internal

# A connection is pinged after KEEPALIVE_S of silence while a call waits, and closed if no answer comes for ANSWER_S.
# The separate ping timeout is for the ping that gRPC sends by itself to measure the line: while one is pending, no
# other is sent. Pings are sent only during a call, because Flower's server rejects other pings.
KEEPALIVE_S, ANSWER_S = 15, 20
LONGEST_BACKOFF_S = 20  # between two attempts to connect, even if the server was down all night
# The limit of a call: two pieces of 5 MiB at once, which is what Flower sends, take this long over 140 kbit/s.
CALL_LIMIT_S = 600.0
PATIENCE_S = 20.0  # for a heartbeat; Flower waits 5 s only, but on a slow line it queues behind a reply
OPTIONS = (
    ("grpc.keepalive_time_ms", 1000 * KEEPALIVE_S),
    ("grpc.keepalive_timeout_ms", 1000 * ANSWER_S),
    ("grpc.http2.ping_timeout_ms", 1000 * ANSWER_S),
    ("grpc.max_reconnect_backoff_ms", 1000 * LONGEST_BACKOFF_S),
)
TRIES = 4  # attempts to send a piece, each in a session of its own
ENDED = 1

Announce = Callable[..., tuple[set[str], str]]
Push = Callable[[int, str, str, bytes], None]


class CallLimit(grpc.UnaryUnaryClientInterceptor):
    """Sets a timeout on every call.

    It is `CALL_LIMIT_S` for a call without a timeout, else the call's own timeout but at least `PATIENCE_S`.
    """

    def intercept_unary_unary(self, continuation: Callable[..., Any], details: Any, request: Any) -> Any:
        limit_s = CALL_LIMIT_S if details.timeout is None else max(details.timeout, PATIENCE_S)
        return continuation(details._replace(timeout=limit_s), request)


def open_channel(
    server_address: str,
    insecure: bool,
    root_certificates: bytes | None = None,
    max_message_length: int = -1,
    interceptors: Sequence[grpc.UnaryUnaryClientInterceptor] | None = None,
) -> grpc.Channel:
    """Open a channel to HOST:PORT over TLS with the one CA `root_certificates` (PEM).

    Replaces Flower's `create_channel`.

    Raises:
        ValueError: A connection without TLS or without that CA is requested.
    """
    if insecure or not root_certificates:
        raise ValueError("a site connects only over TLS, with its pinned CA")
    credentials = grpc.ssl_channel_credentials(root_certificates)
    lengths = [(f"grpc.max_{way}_message_length", max_message_length) for way in ("send", "receive")]
    channel = grpc.secure_channel(server_address, credentials, options=[*lengths, *OPTIONS])
    return grpc.intercept_channel(channel, CallLimit(), *(interceptors or ()))


class ReplyOnItsWay:
    """A reply that is sent piece by piece, each within a session that the server opened when the reply was announced.

    If a connection is cut after the server received a piece and before it confirmed it, Flower sends the piece again,
    the server replies that it expects no such piece, and Flower drops the reply. This class announces the reply again
    instead: the server then reports in a new session which pieces are missing.
    """

    def __init__(self, announce: Announce, push: Push) -> None:
        self._announce, self._push = announce, push
        self._reply: tuple[Any, ...] = ()
        self._session = ""
        self._lock = threading.Lock()

    def announce(self, *reply: Any) -> tuple[set[str], str]:
        """Announce a new reply, given by its message, the tree of its pieces and seconds.

        Returns:
            The pieces that the server lacks, and a session.
        """
        missing, self._session = self._announce(*reply)
        self._reply = reply
        return missing, self._session

    def push(self, run_id: int, session_id: str, piece: str, content: bytes) -> None:
        """Send a piece.

        Raises:
            ObjectPushError: The server does not accept the piece in a new session either.
        """
        for _ in range(TRIES):
            session = self._session
            try:
                return self._push(run_id, session, piece, content)
            except ObjectPushError as error:
                refused = error
            with self._lock:  # pieces are sent two at a time: the first refused one announces again for both
                if session == self._session:
                    missing, self._session = self._announce(*self._reply)
                    if piece not in missing:
                        return None
        raise refused


def watch_the_connection() -> None:
    """Make the SuperNode of this process open its connection by `open_channel` and resume replies after a cut."""
    plain = start_client_internal.grpc_request_response

    @contextmanager
    def watched(*args: Any, **kwargs: Any) -> Iterator[tuple[Any, ...]]:
        with plain(*args, **kwargs) as (node, receive, announce, run, fab, pull, push, confirm):
            reply = ReplyOnItsWay(announce, push)
            yield node, receive, reply.announce, run, fab, pull, reply.push, confirm

    connection.create_channel = open_channel
    start_client_internal.grpc_request_response = watched


def end_with_any_part(main_loop: Callable[[], object]) -> NoReturn:
    """Run the SuperNode's main loop, and end the process when the loop or any thread ends.

    A thread that dies of an exception ends the process by SIGTERM, in good order, so that the server frees the node at
    once.
    """

    def end(died: threading.ExceptHookArgs) -> None:
        threading.__excepthook__(died)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.excepthook = end
    try:
        main_loop()
    except Exception:
        traceback.print_exc()
    print("the SuperNode's main loop failed; its process is stopped", flush=True)
    os._exit(ENDED)  # a normal exit would wait for the threads that serve loopback
