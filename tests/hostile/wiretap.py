"""Who sits on the line and holds the server's key: a proxy that ends TLS on both sides and keeps all in the clear.

To those who call it is the server, with the server's own certificate; at the server it calls under the same CA. A call
goes on as it came, and what it held is kept on the way as gRPC gives it: the method, the metadata and the message, up
and down, decompressed and in one piece. (On the wire itself the words of the metadata are packed, and a message is cut
into frames: there a search would miss what is there.)
"""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import grpc

OPTIONS = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]


@dataclass(kw_only=True)
class Heard:
    """What went over the line: `up` from the site to the server, `down` back; a call after the other, all its bytes."""

    up: list[bytes] = field(default_factory=list)
    down: list[bytes] = field(default_factory=list)
    methods: set[str] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def keep(self, way: list[bytes], method: str, metadata: object, message: bytes) -> None:
        words = (part if isinstance(part, bytes) else str(part).encode() for pair in metadata or () for part in pair)
        with self._lock:
            self.methods.add(method.rsplit("/", 1)[-1])
            way.append(b"\0".join((method.encode(), *words, message)))

    def holds(self, text: str) -> list[str]:
        """In which forms the text went over the line, either way; empty where it did not."""
        with self._lock:
            calls = [*self.up, *self.down]
        return [name for name, form in forms(text).items() if any(form in call for call in calls)]


def forms(text: str) -> dict[str, bytes]:
    """A text as it may stand in a message: plain, as 16-bit text, in hexadecimal, and in base64 at each of its three
    alignments, without the characters that depend on what is beside it.
    """
    plain = text.encode()
    found = {"utf-8": plain, "utf-16": text.encode("utf-16-le"), "hex": plain.hex().encode()}
    for shift in range(3):
        skipped = (0, 2, 3)[shift]
        whole = base64.b64encode(bytes(shift) + plain).rstrip(b"=")
        found[f"base64-{shift}"] = whole[skipped : len(whole) - 1]
    return found


class _Everything(grpc.GenericRpcHandler):
    """Passes each call on, whatever it is called."""

    def __init__(self, channel: grpc.Channel, heard: Heard) -> None:
        self._channel, self._heard = channel, heard

    def service(self, call: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        return grpc.unary_unary_rpc_method_handler(partial(self._pass_on, call.method))

    def _pass_on(self, method: str, message: bytes, context: grpc.ServicerContext) -> bytes:
        metadata = context.invocation_metadata()
        self._heard.keep(self._heard.up, method, metadata, message)
        limit_s = min(context.time_remaining() or 600.0, 600.0)
        try:
            answer, call = self._channel.unary_unary(method).with_call(
                message, metadata=_of_the_call(metadata), timeout=limit_s
            )
        except grpc.RpcError as error:
            self._heard.keep(self._heard.down, method, error.trailing_metadata(), (error.details() or "").encode())
            context.set_trailing_metadata(_of_the_call(error.trailing_metadata()))
            context.abort(error.code(), error.details() or "")
        self._heard.keep(self._heard.down, method, call.trailing_metadata(), answer)
        context.set_trailing_metadata(_of_the_call(call.trailing_metadata()))
        return answer


def _of_the_call(metadata: object) -> tuple[tuple[str, str | bytes], ...]:
    """Without what each connection says of itself."""
    return tuple((key, value) for key, value in metadata or () if key != "user-agent" and not key.startswith("grpc-"))


@contextmanager
def tapped(server_folder: Path, address: str, port: int) -> Iterator[Heard]:
    """A proxy on 127.0.0.1:`port` before the server at `address`, for as long as the block lasts."""
    heard = Heard()
    ca = (server_folder / "ca" / "ca.crt").read_bytes()
    key, certificate = ((server_folder / "tls" / f"server.{kind}").read_bytes() for kind in ("key", "crt"))
    with grpc.secure_channel(address, grpc.ssl_channel_credentials(ca), options=OPTIONS) as channel:
        proxy = grpc.server(ThreadPoolExecutor(16), handlers=(_Everything(channel, heard),), options=OPTIONS)
        assert proxy.add_secure_port(f"127.0.0.1:{port}", grpc.ssl_server_credentials([(key, certificate)])) == port
        proxy.start()
        try:
            yield heard
        finally:
            proxy.stop(5).wait(10)
