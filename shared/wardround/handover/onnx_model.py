"""Run the ONNX file of an exported model with onnxruntime alone: no torch, and no other file than the ONNX file.

Shapes: N images, C channels, H rows, W columns, K outputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from wardround.errors import ModelError
from wardround.handover.package import ONNX_FILE, Package, read_model
from wardround.sources.images.study import image_data
from wardround.study.load import Study

IMAGES, LOGITS, DISTANCE = "images", "logits", "distance"
OPSET = 20
AT_ONCE = 16  # images in one pass: a process with DenseNet121 at 224 pixels then takes 0.8 GB
OWN_OPERATORS = ("", "ai.onnx")  # the standard operators; another domain would need a library of its own


@dataclass(frozen=True, kw_only=True, eq=False)
class OnnxModel:
    """An ONNX file that is ready to run. `image_shape` is (C, H, W); `outputs` is K."""

    session: Any
    image_shape: tuple[int, int, int]
    outputs: int

    def run(self, images_NCHW: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Images, uint8 (N, C, H, W) -> logits, float32 (N, K), and distance, float32 (N,).

        Raises `ModelError` for images of another type or size.
        """
        if images_NCHW.dtype != np.uint8 or images_NCHW.ndim != 4 or images_NCHW.shape[1:] != self.image_shape:
            raise ModelError(
                f"the model reads images uint8 (N, {', '.join(map(str, self.image_shape))}), "
                f"not {images_NCHW.dtype} {images_NCHW.shape}"
            )
        logits = [np.empty((0, self.outputs), np.float32)]
        distance = [np.empty(0, np.float32)]
        for begin in range(0, len(images_NCHW), AT_ONCE):
            batch = np.ascontiguousarray(images_NCHW[begin : begin + AT_ONCE])
            found = self.session.run([LOGITS, DISTANCE], {IMAGES: batch})
            logits.append(found[0])
            distance.append(found[1])
        return np.concatenate(logits), np.concatenate(distance)


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
    shape, outputs = image_data(study).shape_CHW, 1 if len(study.data.labels) == 2 else len(study.data.labels)
    wanted = [
        (IMAGES, "tensor(uint8)", list(shape)),
        (LOGITS, "tensor(float)", [outputs]),
        (DISTANCE, "tensor(float)", []),
    ]
    found = [(one.name, one.type, list(one.shape[1:])) for one in (*session.get_inputs(), *session.get_outputs())]
    if found != wanted:
        raise ModelError(f"{ONNX_FILE}: its inputs and outputs are not those of the study; export the model again")
    return OnnxModel(session=session, image_shape=shape, outputs=outputs)


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
