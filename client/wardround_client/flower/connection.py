"""The SuperNode's connection notices when it is dead, and its process ends when a part of it has ended.

A middlebox that forgets a connection tells neither end: the kernel would find out after a quarter of an hour, and until
then every call waits. And where Flower's main loop or its heartbeat gives up, its process stays and looks well. Here a
dead connection is found within half a minute, each call has an end, and the daemon starts what ended anew. A reply that
was cut on its way out goes on where it was: Flower would drop it whole.

Two functions for `supernode.py`: `watch_the_connection` and `end_with_any_part`.
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

# A connection is asked after KEEPALIVE_S of silence while a call waits, and closed where no answer comes for ANSWER_S.
# Its ping timeout is for the ping that gRPC sends by itself to measure the line: while one is out no other is sent.
# Pings go out only beside a call, so that Flower's server, which allows no others, does not mind them.
KEEPALIVE_S, ANSWER_S = 15, 20
LONGEST_BACKOFF_S = 20  # between two attempts to connect, also after a night without the server
# A call at most: two pieces of 5 MiB at once, which is what Flower sends, take so long over 140 kbit/s.
CALL_LIMIT_S = 600.0
PATIENCE_S = 20.0  # with a heartbeat, which Flower gives up after 5 s: on a slow line it queues behind a reply
OPTIONS = (
    ("grpc.keepalive_time_ms", 1000 * KEEPALIVE_S),
    ("grpc.keepalive_timeout_ms", 1000 * ANSWER_S),
    ("grpc.http2.ping_timeout_ms", 1000 * ANSWER_S),
    ("grpc.max_reconnect_backoff_ms", 1000 * LONGEST_BACKOFF_S),
)
TRIES = 4  # of a piece, each in a session of its own
ENDED = 1

Announce = Callable[..., tuple[set[str], str]]
Push = Callable[[int, str, str, bytes], None]


class CallLimit(grpc.UnaryUnaryClientInterceptor):
    """Gives every call an end: `CALL_LIMIT_S`, or its own where that is longer than `PATIENCE_S`."""

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
    """In place of Flower's `create_channel`: to HOST:PORT over TLS under the one CA `root_certificates` (PEM).

    Raises `ValueError` where it is asked for a connection without TLS or without that CA.
    """
    if insecure or not root_certificates:
        raise ValueError("a site connects only over TLS, with its pinned CA")
    credentials = grpc.ssl_channel_credentials(root_certificates)
    lengths = [(f"grpc.max_{way}_message_length", max_message_length) for way in ("send", "receive")]
    channel = grpc.secure_channel(server_address, credentials, options=[*lengths, *OPTIONS])
    return grpc.intercept_channel(channel, CallLimit(), *(interceptors or ()))


class ReplyOnItsWay:
    """A reply that is sent piece by piece, each within a session that the server gave when it was announced.

    Where a line is cut after the server took a piece and before it said so, Flower sends the piece again, the server
    says that it waits for no such piece, and Flower drops the reply. Here the reply is announced again: the server says
    in a new session which pieces it lacks.
    """

    def __init__(self, announce: Announce, push: Push) -> None:
        self._announce, self._push = announce, push
        self._reply: tuple[Any, ...] = ()
        self._session = ""
        self._lock = threading.Lock()

    def announce(self, *reply: Any) -> tuple[set[str], str]:
        """A new reply (message, tree of its pieces, seconds); the pieces that the server lacks, and a session."""
        missing, self._session = self._announce(*reply)
        self._reply = reply
        return missing, self._session

    def push(self, run_id: int, session_id: str, piece: str, content: bytes) -> None:
        """Send a piece. Raises `ObjectPushError` where the server does not take it in a new session either."""
        for _ in range(TRIES):
            session = self._session
            try:
                return self._push(run_id, session, piece, content)
            except ObjectPushError as error:
                refused = error
            with self._lock:  # pieces go out two at a time: the first that is refused announces anew for both
                if session == self._session:
                    missing, self._session = self._announce(*self._reply)
                    if piece not in missing:
                        return None
        raise refused


def watch_the_connection() -> None:
    """From here on the SuperNode of this process opens its connection by `open_channel`, and its replies survive a
    cut.
    """
    plain = start_client_internal.grpc_request_response

    @contextmanager
    def watched(*args: Any, **kwargs: Any) -> Iterator[tuple[Any, ...]]:
        with plain(*args, **kwargs) as (node, receive, announce, run, fab, pull, push, confirm):
            reply = ReplyOnItsWay(announce, push)
            yield node, receive, reply.announce, run, fab, pull, reply.push, confirm

    connection.create_channel = open_channel
    start_client_internal.grpc_request_response = watched


def end_with_any_part(main_loop: Callable[[], object]) -> NoReturn:
    """Run the SuperNode's main loop, and end the process with it, however it ended, or with any of its threads.

    A thread that dies of an exception ends it in good order, so that the server has the node free at once.
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
    os._exit(ENDED)  # threads that serve loopback would keep it
