"""Compare an ONNX file with torch on a fixed set of rows, chosen by the task to be difficult for an exported graph."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from wardround.errors import ModelError
from wardround.handover.onnx_model import AT_ONCE, onnx_model
from wardround.handover.package import ONNX_FILE
from wardround.study.load import Study
from wardround.tasks.registry import exported_part

TOLERANCE = 1e-5  # of the largest output, if that is above 1; the rounding of float32 in a ResNet reaches 4e-6


@dataclass(frozen=True, kw_only=True)
class Compared:
    """The number of rows compared, and the largest difference of any output.

    A difference is |ONNX - torch| / max(1, the largest |torch| of all rows), because the rounding of float32 grows
    with the output.
    """

    rows: int
    largest: float


def check_equality(released: nn.Module, content: bytes, study: Study, rows: int = 60) -> Compared:
    """Compare the outputs of an ONNX file with those of `released`, the module of which it was made.

    Raises:
        ModelError: They differ by more than `TOLERANCE`, or the content is not an ONNX file of this study.
    """
    rows_N = exported_part(study.study.task).fixed_rows(study, rows)
    outputs = onnx_model(content, study).run(rows_N)
    wanted = torch_outputs(released, rows_N)
    largest = max(
        float(np.abs(one - other).max() / max(1.0, np.abs(other).max()))
        for one, other in zip(outputs, wanted, strict=True)
    )
    if not largest <= TOLERANCE:  # also if it is not a number
        raise ModelError(
            f"{ONNX_FILE}: differs from the network by {largest:.2g}, more than {TOLERANCE:g}; report this as a defect"
        )
    return Compared(rows=len(rows_N), largest=largest)


def torch_outputs(released: nn.Module, rows_N: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return the outputs of the module in evaluation mode, float32, N along the first axis of each."""
    parts = []
    with torch.no_grad():
        for begin in range(0, len(rows_N), AT_ONCE):
            found = released.eval()(torch.from_numpy(rows_N[begin : begin + AT_ONCE]))
            parts.append(found if isinstance(found, tuple) else (found,))
    return tuple(torch.cat(outputs).numpy() for outputs in zip(*parts, strict=True))
