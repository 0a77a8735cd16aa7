"""How much a message of Flower's may grow when its pieces are put together.

Arrays travel as pieces of 5 MiB, each sent once, and a list says in which order a piece stands where, also how often.
So a message of a few kilobytes and one piece can grow to any size in the memory of whoever opens it, at a server or a
hospital. What was sent can be bounded on arrival; this is the bound on what comes of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from flwr.app import Array
from flwr.supercore.inflatable.inflatable_object import (
    get_object_body,
    get_object_children_ids_from_object_content,
)

from wardround.errors import WireError


@contextmanager
def arrays_at_most(limit_bytes: int) -> Iterator[None]:
    """Inside the block all arrays that are put together by this process hold `limit_bytes` at most.

    The array that would go beyond raises `WireError` "size", before its memory is asked for.
    """
    plain, total = Array.__dict__["inflate"], 0

    def inflate(cls: type[Array], content: bytes, children: dict[str, Any] | None = None) -> Array:
        nonlocal total
        pieces = get_object_children_ids_from_object_content(content)
        order = json.loads(get_object_body(content, cls))["arraychunk_ids"]
        sizes = {name: len(piece.data) for name, piece in (children or {}).items()}
        total += sum(sizes[pieces[place]] for place in order)
        if total > limit_bytes:
            raise WireError("size", f"the arrays of a message would hold more than {limit_bytes} bytes")
        return plain.__func__(cls, content, children)

    Array.inflate = classmethod(inflate)  # type: ignore[assignment]  # replaces a classmethod of Flower's
    try:
        yield
    finally:
        Array.inflate = plain  # type: ignore[method-assign]  # puts Flower's own back
