"""What every request must pass before a page sees it, and the headers of every answer.

Refused are: another method than GET, HEAD and POST, a host name that is not the console's (DNS rebinding), an address
that is not the proxy's, a body that is too large or too slow, too many requests, and a form that another web site sent.
Each page forbids scripts and styles of others, frames around it, and copies in a cache.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections.abc import Mapping

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from wardround.printable import quoted
from wardround.web.accounts.limits import Limit, limited_address
from wardround.web.accounts.sessions import same
from wardround.web.config import LOOPBACK_NAMES, ConsoleConfig
from wardround.web.limited_log import LimitedLog

MOST_BYTES = 256 * 1024  # of a form; a study file is the longest text that is sent
MOST_HEADER_BYTES = 16 * 1024
BODY_LIMIT_S = 20.0
REQUESTS, WITHIN_S = 600, 60.0  # of one address
SECRET_HEADER = "x-console-secret"
PROXY_HEADERS = ("forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-real-ip")
# Nothing is loaded from elsewhere, no script or style stands in a page, and no page stands in a frame.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; "
    "frame-ancestors 'none'; base-uri 'none'"
)
HEADERS: Mapping[str, str] = {
    "content-security-policy": POLICY,
    "x-frame-options": "DENY",
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    "cache-control": "no-store",
    "x-robots-tag": "noindex",
}
STRICT_TRANSPORT = "max-age=31536000"
OWN = ("same-origin", "none")  # what browsers state in Sec-Fetch-Site for a page's own requests, and typed addresses


class Refusal(Exception):
    """A request that no page sees: the status, and one line of text for whoever sent it."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Guard:
    """The outermost layer of a console."""

    def __init__(self, app: ASGIApp, config: ConsoleConfig, port: int, proxy_secret: str | None = None) -> None:
        """Guard `app`, which listens on `port`.

        `proxy_secret` is what the proxy must send in `X-Console-Secret`; None if there is no proxy.
        """
        self._app, self._config, self._secret = app, config, proxy_secret
        names = {name.lower() for name in (config.hosts if config.behind_proxy else LOOPBACK_NAMES)}
        self._hosts = names if config.behind_proxy else {f"{name}:{port}" for name in names}
        self._requests = Limit(REQUESTS, WITHIN_S)
        self._refusals = LimitedLog(logging.getLogger(__name__))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # no page uses a web socket
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                if self._config.behind_proxy:
                    headers["strict-transport-security"] = STRICT_TRANSPORT
            await send(message)

        try:
            self._check(scope)
            body = await self._body(scope, receive)
        except Refusal as refusal:
            self._refusals.warning("a request from %s was refused: %s", scope["state"].get("address", ""), refusal)
            await PlainTextResponse(f"{refusal}\n", refusal.status)(scope, receive, send_guarded)
            return
        await self._app(scope, _replay(body, receive), send_guarded)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        peer = (scope.get("client") or ("", 0))[0]
        scope["state"] = {**scope.get("state", {}), "address": peer}
        scope["state"] = {**scope.get("state", {}), "address": self._address(peer, headers)}
        if sum(len(name) + len(value) for name, value in scope["headers"]) > MOST_HEADER_BYTES:
            raise Refusal(431, "the head of the request is too long")
        if scope["method"] not in ("GET", "HEAD", "POST"):
            raise Refusal(405, "this method is not used here")
        hosts = headers.getlist("host")
        if len(hosts) != 1 or self._named(hosts[0]) not in self._hosts:
            raise Refusal(421, "the console is not known under this name; use the address that its operator gave you")
        foreign = headers.get("sec-fetch-site", "none") not in OWN
        if scope["method"] == "POST":
            self._check_origin(headers, hosts[0])
        elif foreign and not _is_followed_link(headers):
            raise Refusal(403, "another web site asked for this; open the console by itself")
        # What other web sites make a browser send is counted by itself, so that they cannot use up the person's share.
        key = limited_address(scope["state"]["address"]) + (" from another web site" if foreign else "")
        if wait_s := self._requests.wait_s(key):
            raise Refusal(429, f"too many requests; try again in {wait_s:.0f} s")

    def _named(self, host: str) -> str:
        """Return the host as it is compared: through the proxy without the port, which is the proxy's own."""
        name, _, port = host.lower().rpartition(":")
        return name if self._config.behind_proxy and name and port.isdigit() else host.lower()

    def _address(self, peer: str, headers: Headers) -> str:
        """Return the browser's address: the peer's, or the one that the proxy added last to X-Forwarded-For."""
        if self._config.proxy is None:
            if any(name in headers for name in PROXY_HEADERS):
                raise Refusal(403, "a reverse proxy is in front of the console, but [console] proxy is not set")
            return peer
        if not _is(peer, self._config.proxy):
            raise Refusal(403, "only the reverse proxy may connect here")
        if self._secret is not None:
            given = headers.getlist(SECRET_HEADER)
            if len(given) != 1 or not same(given[0], self._secret):
                raise Refusal(403, "the reverse proxy did not send its secret")
        last = ",".join(headers.getlist("x-forwarded-for")).rpartition(",")[2].strip()
        try:
            return str(ipaddress.ip_address(last))
        except ValueError:
            return peer

    def _check_origin(self, headers: Headers, host: str) -> None:
        """Refuse a form that a page of another web site sent; browsers state where a form comes from."""
        scheme = "https" if self._config.behind_proxy else "http"
        origin, site = headers.get("origin"), headers.get("sec-fetch-site")
        if origin is not None and origin.lower() != f"{scheme}://{host.lower()}":
            raise Refusal(403, f"the form comes from another web site: {quoted(origin[:100])}")
        if site is not None and site not in OWN:
            raise Refusal(403, "the form comes from another web site")

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        if scope["method"] != "POST":
            return b""
        headers = Headers(scope=scope)
        if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/x-www-form-urlencoded":
            raise Refusal(415, "only forms are accepted here")
        try:
            return await asyncio.wait_for(_read(receive), BODY_LIMIT_S)
        except TimeoutError:
            raise Refusal(408, "the form did not arrive in time") from None


def _is_followed_link(headers: Headers) -> bool:
    """Whether a person opened a page from elsewhere; not a picture, a script or a frame of a page of elsewhere."""
    return headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest", "document") == "document"


async def _read(receive: Receive) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Refusal(400, "the connection ended before the form was complete")
        body += message.get("body", b"")
        if len(body) > MOST_BYTES:
            raise Refusal(413, f"the form is longer than {MOST_BYTES // 1024} kB")
        if not message.get("more_body"):
            return bytes(body)


def _replay(body: bytes, receive: Receive) -> Receive:
    """Give the body that was read to the page, and afterwards what else comes."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def _is(peer: str, proxy: str) -> bool:
    try:
        return ipaddress.ip_address(peer) == ipaddress.ip_address(proxy)
    except ValueError:
        return False
