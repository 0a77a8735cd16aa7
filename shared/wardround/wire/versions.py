"""Which software each side runs, how it is told, and who must move where two do not fit.

It travels with every proposal and every answer to one, beside the record itself, so that it is read even where the
rest is of a version that this one does not know. What a peer says of itself is shown and compared, never trusted: the
records are checked whatever it says.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Literal

from wardround.wire.packets import PROTOCOL_VERSION

SOFTWARE = "software"  # the record's name
Side = Literal["site", "server"]
_VERSION = re.compile(r"[0-9]{1,6}(\.[0-9A-Za-z+-]{1,16}){0,5}")


@dataclass(frozen=True, kw_only=True)
class Software:
    """What one side runs."""

    wardround: str
    flower: str
    protocol: int

    def __str__(self) -> str:
        return f"wardround {self.wardround}, Flower {self.flower}"


def ours() -> Software:
    """What runs here."""
    return Software(wardround=version("wardround"), flower=version("flwr"), protocol=PROTOCOL_VERSION)


def told(content: Mapping[str, Any]) -> Software | None:
    """What a message or a file says of the software it comes from; None where it says nothing that can be read."""
    record = content.get(SOFTWARE)
    if not isinstance(record, Mapping) or set(record) != {"wardround", "flower", "protocol"}:
        return None
    texts, protocol = (record["wardround"], record["flower"]), record["protocol"]
    if not all(isinstance(text, str) and _VERSION.fullmatch(text) for text in texts):
        return None
    if type(protocol) is not int or not 0 < protocol < 2**31:
        return None
    return Software(wardround=texts[0], flower=texts[1], protocol=protocol)


def older_side(*, site_protocol: object, server_protocol: object) -> Side:
    """Which side must move where their protocols differ: the one with the lower number, or with none."""
    site, server = (number if type(number) is int else 0 for number in (site_protocol, server_protocol))
    return "site" if site < server else "server"


def mismatch(*, site: Software, server: Software) -> str | None:
    """Where the two cannot work together: one line that says what differs and who must move. None where they can."""
    if site.protocol != server.protocol:
        older: Side = older_side(site_protocol=site.protocol, server_protocol=server.protocol)
        return f"the site speaks protocol {site.protocol}, the server {server.protocol}: {_must_move(older)}"
    if _release(site.flower) != _release(server.flower):
        older = "site" if _release(site.flower) < _release(server.flower) else "server"
        return f"the site has Flower {site.flower}, the server {server.flower}: {_must_move(older)}"
    return None


def _must_move(side: Side) -> str:
    return f"the {side} must upgrade, to the version that the other side has"


def _release(text: str) -> tuple[int, ...]:
    """Major and minor, as far as they are numbers."""
    return tuple(int(part) for part in text.split(".")[:2] if part.isdigit())
