"""The software versions of both sides: their record on the wire, and the side that must upgrade on a mismatch.

The record accompanies every proposal and every reply to one, separate from the proposal's own record, so that it can be
read even if that is of an unknown version. A peer's version is displayed and compared, but not trusted: all records are
validated regardless of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Literal

from wardround.wire.packets import PROTOCOL_VERSION

SOFTWARE = "software"  # name of the record
Side = Literal["site", "server"]
_VERSION = re.compile(r"[0-9]{1,6}(\.[0-9A-Za-z+-]{1,16}){0,5}")


@dataclass(frozen=True, kw_only=True)
class Software:
    """The versions of Wardround, Flower and the protocol on one side."""

    wardround: str
    flower: str
    protocol: int

    def __str__(self) -> str:
        return f"wardround {self.wardround}, Flower {self.flower}"


def ours() -> Software:
    """Return the versions of this installation."""
    return Software(wardround=version("wardround"), flower=version("flwr"), protocol=PROTOCOL_VERSION)


def software_in(content: Mapping[str, Any]) -> Software | None:
    """Read the sender's versions from a message or a file; None if they are missing or malformed."""
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
    """Return the side that must upgrade if the protocols differ: the one with the lower number, or with none."""
    site, server = (number if type(number) is int else 0 for number in (site_protocol, server_protocol))
    return "site" if site < server else "server"


def mismatch(*, site: Software, server: Software) -> str | None:
    """Return one line with the difference and the side that must upgrade, or None if both sides are compatible."""
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
    """Return the major and minor version, as far as they are numbers."""
    return tuple(int(part) for part in text.split(".")[:2] if part.isdigit())
