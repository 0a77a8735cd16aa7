"""Flower's SuperNode over a connection that notices when it is dead, in a process that ends when a part of it ended.

A middlebox that forgets a connection tells neither end: the kernel would find out after a quarter of an hour, and until
then every call waits. And where Flower's main loop or its heartbeat gives up, its process stays and looks well. Here a
dead connection is found within half a minute, each call has an end, and the daemon starts what ended anew.

    python -I -m wardround_client.supernode flower-supernode FLAG ...
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import grpc
from flwr.client.grpc_rere_client import connection
from flwr.supernode.cli import flower_supernode

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
ENDED = 1


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
        raise ValueError("a hospital connects over TLS, with the CA that it pinned")
    credentials = grpc.ssl_channel_credentials(root_certificates)
    lengths = [(f"grpc.max_{way}_message_length", max_message_length) for way in ("send", "receive")]
    channel = grpc.secure_channel(server_address, credentials, options=[*lengths, *OPTIONS])
    return grpc.intercept_channel(channel, CallLimit(), *(interceptors or ()))


def end_with_any_thread() -> None:
    """From here on a thread that dies of an exception ends the process, in good order: its node is free at once."""

    def end(died: threading.ExceptHookArgs) -> None:
        threading.__excepthook__(died)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.excepthook = end


def main(arguments: Sequence[str]) -> None:
    """Be the SuperNode. Never returns: where Flower's own main loop gives up, the process ends with its loopback."""
    sys.argv = list(arguments)
    connection.create_channel = open_channel
    end_with_any_thread()
    try:
        flower_supernode()
    except Exception:
        traceback.print_exc()
    print("the SuperNode's main loop gave up; its process ends", flush=True)
    os._exit(ENDED)  # threads that serve loopback would keep it


if __name__ == "__main__":
    main(sys.argv[1:])
