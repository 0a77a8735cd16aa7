"""Network probes for `doctor`: a TLS handshake with a server, and a test for a free port.

The handshake is the only connection to another machine that a site or a server opens outside its `flower` room. It uses
the pinned CA, and sends nothing beyond the handshake, except the two lines that ask a proxy to forward the connection.
Every wait has a time limit.
"""

from __future__ import annotations

import socket
import ssl
import time

from wardround.errors import UsageError, WardroundError

TIMEOUT_S = 10.0
_PROXY_ANSWER = 8192  # maximum size in bytes


def split_address(address: str) -> tuple[str, int]:
    """Split HOST:PORT or [IPV6]:PORT. Raises `UsageError` if the address is invalid."""
    host, colon, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise UsageError(f"{address}: write HOST:PORT, for example federation.example.org:9092")
    return host, int(port)


def presented_certificate(
    address: str, ca_pem: str, proxy: str | None = None, timeout_s: float = TIMEOUT_S, name: str | None = None
) -> bytes:
    """Return the server's certificate (DER), after verifying it against the CA and its own name.

    Args:
        address: HOST:PORT of the server.
        ca_pem: The CA certificate.
        proxy: HOST:PORT of a proxy that is asked to CONNECT.
        timeout_s: The time limit.
        name: The name to verify, if it is not HOST.

    Raises:
        WardroundError: The message is one line that states which part failed: name, connection, proxy or certificate.
    """
    host, port = split_address(address)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_verify_locations(cadata=ca_pem)
    context.set_alpn_protocols(["h2"])
    ends = time.monotonic() + timeout_s
    try:
        with _connected(proxy or address, timeout_s) as plain:
            if proxy is not None:
                _ask_proxy(plain, f"{host}:{port}", proxy, ends)
            plain.settimeout(max(0.1, ends - time.monotonic()))
            with context.wrap_socket(plain, server_hostname=name or host) as connection:
                return connection.getpeercert(binary_form=True) or b""
    except ssl.SSLCertVerificationError as error:
        raise WardroundError(f"{address}: its certificate is refused: {error.verify_message}") from None
    except ssl.SSLError as error:
        raise WardroundError(f"{address}: answers, but not with TLS ({error.reason or 'handshake failed'})") from None
    except TimeoutError:
        raise WardroundError(f"{address}: no answer within {timeout_s:g} s") from None
    except OSError as error:
        raise WardroundError(f"{address}: the connection broke: {error.strerror or error}") from None


def _connected(address: str, timeout_s: float) -> socket.socket:
    host, port = split_address(address)
    try:
        return socket.create_connection((host, port), timeout=timeout_s)
    except socket.gaierror:
        raise WardroundError(f"{address}: this machine's DNS has no such name") from None
    except TimeoutError:
        raise WardroundError(f"{address}: no answer within {timeout_s:g} s; check the firewalls in between") from None
    except OSError as error:
        raise WardroundError(f"{address}: no connection: {error.strerror}") from None


def _ask_proxy(plain: socket.socket, target: str, proxy: str, ends: float) -> None:
    plain.sendall(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode("ascii"))
    answer = b""
    while b"\r\n\r\n" not in answer and len(answer) < _PROXY_ANSWER:
        plain.settimeout(max(0.1, ends - time.monotonic()))
        piece = plain.recv(1)  # byte by byte, because what follows the answer belongs to the handshake
        if not piece:
            break
        answer += piece
    words = answer.split(b"\r\n", 1)[0].split()
    if len(words) < 2 or not words[0].startswith(b"HTTP/") or words[1] != b"200":
        code = words[1].decode("ascii", "replace") if len(words) > 1 else "nothing"
        raise WardroundError(f"{proxy}: the proxy did not connect to {target}: its answer was {code}")


def port_is_free(address: str, port: int) -> bool:
    """Return whether a program of this user could listen on the port now."""
    return listen_error(address, port) is None


def listen_error(address: str, port: int) -> OSError | None:
    """Return why no program of this user could listen on the port now, or None if one could."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((address, port))
    except OSError as error:
        return error
    return None
