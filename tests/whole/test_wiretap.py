"""The proxy of test_hostile.py records all that passes; otherwise the absence of a name would prove nothing."""

import base64
import socket
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import grpc
import pytest
from hostile.wiretap import forms, tapped

from wardround_server.sites.certificates import new_authority, new_key_pem, server_certificate

NAME = "CANARY^PATIENT"


@pytest.fixture
def server(tmp_path):
    """A server's folder with its keys, and the address where it repeats under TLS what it is told, or fails with it."""

    def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
        if request.startswith(b"fail "):
            context.abort(grpc.StatusCode.INTERNAL, request[5:].decode())
        context.set_trailing_metadata((("flwr-said", "heard"),))
        return request

    authority, key, now = new_authority("test", datetime.now(UTC)), new_key_pem(), datetime.now(UTC)
    certificate = server_certificate(authority, key, ("127.0.0.1",), now, 30)
    for name, content in (("ca/ca.crt", authority.certificate_pem), ("tls/server.key", key)):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(content)
    (tmp_path / "tls" / "server.crt").write_bytes(certificate)
    served = grpc.server(ThreadPoolExecutor(2))
    method = {"Say": grpc.unary_unary_rpc_method_handler(answer)}
    served.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", method),))
    port = served.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(key, certificate)]))
    served.start()
    yield tmp_path, f"127.0.0.1:{port}"
    served.stop(None).wait(5)


WAYS = {
    "nowhere": (b"hello", ()),
    "in a message": (NAME.encode(), ()),
    "in a message that is cut into frames": (bytes(100_000) + NAME.encode(), ()),
    "in 16-bit text": (NAME.encode("utf-16-le"), ()),
    "in hexadecimal": (NAME.encode().hex().encode(), ()),
    "in base64": (base64.b64encode(b"/data/" + NAME.encode() + b".dcm"), ()),
    "in metadata": (b"hello", (("flwr-node", NAME),)),
    "in an error": (b"fail /data/" + NAME.encode(), ()),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_name_is_heard_however_it_goes_over_the_line_and_only_then(server, way):
    folder, address = server
    message, metadata = WAYS[way]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    trust = grpc.ssl_channel_credentials((folder / "ca" / "ca.crt").read_bytes())
    with tapped(folder, address, port) as heard, grpc.secure_channel(f"127.0.0.1:{port}", trust) as channel:
        call = channel.unary_unary("/test.Echo/Say")
        if message.startswith(b"fail "):
            with pytest.raises(grpc.RpcError) as failed:
                call(message, metadata=metadata, timeout=20)
            assert (failed.value.code(), failed.value.details()) == (grpc.StatusCode.INTERNAL, message[5:].decode())
        else:
            answer, ended = call.with_call(message, metadata=metadata, timeout=20)
            assert answer == message and ("flwr-said", "heard") in ended.trailing_metadata(), "it passes all on"
    assert heard.methods == {"Say"} and len(heard.up) == len(heard.down) == 1
    assert bool(heard.holds(NAME)) == (way != "nowhere")
    assert heard.holds("CANARY^ANOTHER") == []


def test_base64_is_known_at_each_alignment_and_whatever_stands_beside_it():
    for before in range(6):
        for after in range(4):
            text = base64.b64encode(b"a" * before + NAME.encode() + b"z" * after)
            assert any(form in text for name, form in forms(NAME).items() if name.startswith("base64"))
