"""Run the ONNX file of an exported model with onnxruntime alone: no torch, and no other file than the ONNX file.

Shapes: N rows of the shape that the task's `onnx_form` states.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from wardround.errors import ModelError
from wardround.handover.package import ONNX_FILE, Package, read_model
from wardround.study.load import Study
from wardround.tasks.onnx_form import OnnxForm
from wardround.tasks.registry import release_part

OPSET = 20
AT_ONCE = 16  # rows in one pass: a process with DenseNet121 at 224 pixels then takes 0.8 GB
OWN_OPERATORS = ("", "ai.onnx")  # the standard operators; another domain would need a library of its own


@dataclass(frozen=True, kw_only=True, eq=False)
class OnnxModel:
    """An ONNX file that is ready to run."""

    session: Any
    form: OnnxForm

    def run(self, rows_N: np.ndarray) -> tuple[np.ndarray, ...]:
        """Rows as the form states -> its outputs in their order, float32, N along the first axis of each.

        Raises `ModelError` for rows of another type or shape.
        """
        form = self.form
        if rows_N.dtype != form.dtype or rows_N.ndim != 1 + len(form.row_shape) or rows_N.shape[1:] != form.row_shape:
            wanted = f"{form.input} {form.dtype} {form.shape_text}"
            raise ModelError(f"the model reads {wanted}, not {rows_N.dtype} {rows_N.shape}")
        parts = [[np.empty((0, *shape), np.float32)] for shape in form.outputs.values()]
        for begin in range(0, len(rows_N), AT_ONCE):
            batch = np.ascontiguousarray(rows_N[begin : begin + AT_ONCE])
            for part, found in zip(parts, self.session.run(list(form.outputs), {form.input: batch}), strict=True):
                part.append(found)
        return tuple(np.concatenate(part) for part in parts)


def open_onnx(package: Package, threads: int | None = None) -> OnnxModel:
    """Open the ONNX file of a package, checking the bytes that are used. Raises `ModelError` as `onnx_model` does."""
    return onnx_model(read_model(package, ONNX_FILE), package.study, threads)


def onnx_model(content: bytes, study: Study, threads: int | None = None) -> OnnxModel:
    """Open the content of an ONNX file.

    Args:
        content: The file's bytes.
        study: The study that the input and outputs must fit.
        threads: Threads of one operator; None: one per core.

    Raises:
        ModelError: The content is not a model, reads other files, has operators of its own, or has other inputs or
            outputs than the study's (one line).
    """
    import onnxruntime

    check_self_contained(content)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has no common base class
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{ONNX_FILE}: onnxruntime cannot open it: {reason}") from None
    form = release_part(study.study.task).onnx_form(study)
    wanted = [
        (form.input, {"uint8": "tensor(uint8)", "float32": "tensor(float)"}[form.dtype], list(form.row_shape)),
        *((name, "tensor(float)", list(shape)) for name, shape in form.outputs.items()),
    ]
    found = [(one.name, one.type, list(one.shape[1:])) for one in (*session.get_inputs(), *session.get_outputs())]
    if found != wanted:
        raise ModelError(f"{ONNX_FILE}: its inputs and outputs are not those of the study; export the model again")
    return OnnxModel(session=session, form=form)


def check_self_contained(content: bytes) -> None:
    """Raise `ModelError` if an ONNX file is damaged, names another file, or needs operators that are not standard."""
    import onnx

    try:
        model = onnx.load_model_from_string(content)
    except Exception:  # of protobuf, whose exceptions have no common base class
        raise ModelError(f"{ONNX_FILE}: damaged, or not an ONNX file; export the model again") from None
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in _tensors(model.graph)):
        raise ModelError(f"{ONNX_FILE}: reads weights from another file, which no exported model does")
    if model.functions or any(one.domain not in OWN_OPERATORS for one in model.opset_import):
        raise ModelError(f"{ONNX_FILE}: has operators of its own, which no exported model has")


def _tensors(graph: Any) -> Iterator[Any]:
    """Yield all constant tensors of a graph and its subgraphs."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for inner in (attribute.g, *attribute.graphs):
                if inner.node or inner.initializer:
                    yield from _tensors(inner)
