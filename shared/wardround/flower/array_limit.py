"""A limit on the size of a Flower message after its arrays have been reassembled.

Arrays are sent in pieces of 5 MiB, each sent once, with a list of the order in which the pieces are joined. A piece may
appear in that list any number of times. A message of a few kilobytes and one piece can therefore grow to any size in
the memory of the server or hospital that opens it. The size of what was sent is limited on arrival; this module limits
the size after reassembly.
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
    """Limit the total size of all arrays that this process reassembles inside the block to `limit_bytes`.

    Raises:
        WireError: "size", for the array that would exceed the limit, before its memory is allocated.
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

    Array.inflate = classmethod(inflate)  # type: ignore[assignment]  # replaces Flower's classmethod
    try:
        yield
    finally:
        Array.inflate = plain  # type: ignore[method-assign]  # restores Flower's own
