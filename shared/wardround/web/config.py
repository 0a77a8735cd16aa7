"""`[console]` of site.toml and server.toml: where the web console listens, and who may reach it.

The console listens on loopback only. A reverse proxy, which adds TLS, is the only way to open it to other machines.
"""

from __future__ import annotations

import ipaddress
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

LOOPBACK_NAMES = ("127.0.0.1", "localhost", "[::1]")
PORT = 9095
OPERATOR_PORT = 9096  # in a new server.toml, so that a site and a server on one machine do not meet
HOST_NAME = r"^[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?$"
HEADER = r"^[A-Za-z][A-Za-z0-9-]{0,63}$"


class ConsoleConfig(BaseModel):
    """`[console]`.

    Attributes:
        address: The address to listen on. Another one than loopback needs `proxy`.
        port: The port of the pages.
        metrics_port: The port of `/metrics` on 127.0.0.1, for Prometheus; 0: no metrics.
        hosts: The names under which browsers reach the console through the proxy. A request for another name is
            refused, so that a foreign web page cannot reach the console through a DNS name of its own.
        proxy: The address of the reverse proxy. No other address may then connect, and cookies need TLS. Each request
            must have the content of `console/proxy.secret` as `X-Console-Secret`.
        user_header: The header in which the proxy names the user whom it has authenticated. Nobody signs in with a
            password then.
        idle_minutes: A session without a request ends after this time.
        longest_hours: Every session ends after this time.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    address: str = "127.0.0.1"
    port: Annotated[int, Field(ge=1, le=65535)] = PORT
    metrics_port: Annotated[int, Field(ge=0, le=65535)] = 0
    hosts: tuple[Annotated[str, Field(pattern=HOST_NAME)], ...] = ()
    proxy: str | None = None
    user_header: Annotated[str, Field(pattern=HEADER)] | None = None
    idle_minutes: Annotated[int, Field(ge=1, le=240)] = 15
    longest_hours: Annotated[int, Field(ge=1, le=24)] = 8

    @property
    def behind_proxy(self) -> bool:
        """Whether browsers reach the console through a reverse proxy, with TLS."""
        return self.proxy is not None

    @model_validator(mode="after")
    def _closed_to_other_machines(self) -> Self:
        for name in ("address", "proxy"):
            value = getattr(self, name)
            try:
                found = None if value is None else ipaddress.ip_address(value)
            except ValueError:
                raise ValueError(f"{name}: write an address such as 127.0.0.1, not {value!r}") from None
            if name == "address" and found is not None and not found.is_loopback and not self.behind_proxy:
                raise ValueError("address: the console listens on loopback only, unless console.proxy names a proxy")
        if self.behind_proxy and not self.hosts:
            raise ValueError("hosts: name the host under which browsers reach the console through the proxy")
        if self.user_header is not None and not self.behind_proxy:
            raise ValueError("user_header: needs console.proxy, because anybody could send this header otherwise")
        if self.port == self.metrics_port:
            raise ValueError("metrics_port: must differ from port, where people sign in")
        return self


def console_text(whose: str, port: int = PORT) -> str:
    """Return `[console]` with every key explained, as a new configuration file has it.

    `whose` is in the host names.
    """
    return f"""\

[console]
# The web console's address and port. Another address than loopback needs a reverse proxy.
address = "127.0.0.1"
port = {port}
# The port of /metrics on 127.0.0.1, for Prometheus; 0 serves no metrics.
metrics_port = 0
# Behind a reverse proxy with TLS: the names under which browsers reach the console, and the address of the proxy.
# The proxy must send the content of console/proxy.secret as X-Console-Secret with every request.
# hosts = ["console.{whose}.example"]
# proxy = "127.0.0.1"
# The header in which the proxy names the user it has authenticated.
# user_header = "X-Remote-User"
# A session ends after this time without a request, and after this time in any case.
idle_minutes = 15
longest_hours = 8
"""
