"""What the ONNX file of a released model reads and returns: what a task's `release.py` says about it, without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

LOGITS, DISTANCE = "logits", "distance"


@dataclass(frozen=True, kw_only=True)
class OnnxForm:
    """The one input of the file and its outputs, each with any number N of rows along the first axis.

    Attributes:
        input: The name of the input, which is what a row is, in the plural.
        dtype: The type of its numbers.
        row_shape: The shape of one row, without N.
        outputs: The outputs in order, all float32: name -> shape without N. `logits` is always among them.
        reads: What a number of the input means, for the model card; it follows the shape.
        logits: What a number of `logits` means; it follows the name and the type.
        columns: What the last axis of a row holds, in order: name and meaning of each. Empty if `reads` says it all.
    """

    input: str
    dtype: Literal["uint8", "float32"]
    row_shape: tuple[int, ...]
    outputs: Mapping[str, tuple[int, ...]]
    reads: str
    logits: str
    columns: Sequence[tuple[str, str]] = ()

    @property
    def shape_text(self) -> str:
        """The shape of the input, for people."""
        return f"(N, {', '.join(map(str, self.row_shape))})"
