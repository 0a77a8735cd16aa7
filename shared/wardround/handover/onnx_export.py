"""Write a released model as one ONNX file with its preprocessing, and prove that it computes what torch does.

    python -I -m wardround.handover.onnx_export STUDY.json MODEL.safetensors OUT.onnx

The server starts this module as a process of its own, because it never imports torch. The process prints one line of
JSON, `OnnxExport`. The task says what the file reads and returns (`onnx_form` of its `release.py`).

Every operator is exported as it is: crop, Otsu's threshold and the eight views of an image, and the features of a
patient's record, are part of the graph. The shape of a row is fixed by the study, their number N is free.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from wardround.errors import ModelError, WardroundError
from wardround.handover.equality import check_equality
from wardround.handover.network import network_with
from wardround.handover.onnx_model import OPSET
from wardround.networks.fingerprint import architecture_sha256
from wardround.storage.atomic import write_file
from wardround.storage.disk_errors import writing
from wardround.study.load import Study, study_from_json
from wardround.tasks.registry import exported_part, release_part

LARGEST_BATCH = 2**20  # of the exported graph; a bound that torch.export needs, and no limit in practice


@dataclass(frozen=True, kw_only=True)
class OnnxExport:
    """What an export found: the network's architecture, the threshold of `distance` if there is such an output, and the
    equality with torch.

    `largest_difference` over `images_compared` rows is that of `equality.Compared`.
    """

    architecture_sha256: str
    familiarity_threshold: float | None
    images_compared: int
    largest_difference: float


def export(released: nn.Module, study: Study, path: Path) -> None:
    """Write a module to one ONNX file, atomically.

    Args:
        released: Has the input and the outputs of the task's `onnx_form`.
        study: The study that trained it.
        path: The file to write.

    Raises:
        ModelError: torch cannot export the network (one line).
        UsageError: The file cannot be written.
    """
    form = release_part(study.study.task).onnx_form(study)
    sample = torch.zeros(2, *form.row_shape, dtype=getattr(torch, form.dtype))
    batch = torch.export.Dim("N", min=1, max=LARGEST_BATCH)
    try:
        with torch.no_grad(), _quiet():
            program = torch.onnx.export(
                released.eval(), (sample,), dynamo=True, opset_version=OPSET, verbose=False, external_data=False,
                input_names=[form.input], output_names=list(form.outputs), dynamic_shapes=({0: batch},),
            )  # fmt: skip
    except Exception as error:  # the exporter raises errors of many types
        raise ModelError(
            f"{study.model.name}: cannot be exported to ONNX: {' '.join(str(error).split())[:200]}"
        ) from error
    if program is None:
        raise ModelError(f"{study.model.name}: cannot be exported to ONNX")
    with writing(path):
        write_file(path, program.model_proto.SerializeToString())


def export_file(study: Study, model: Path, path: Path) -> OnnxExport:
    """Export the released model of a study, and compare the written file with torch on many rows.

    Raises:
        ModelError: The file does not fit the study, cannot be exported, or the ONNX file computes something else.
    """
    network = network_with(study, model.read_bytes(), model)
    released, threshold = exported_part(study.study.task).exported(network, study)
    export(released, study, path)
    compared = check_equality(released, path.read_bytes(), study)
    return OnnxExport(
        architecture_sha256=architecture_sha256(network),
        familiarity_threshold=threshold,
        images_compared=compared.rows,
        largest_difference=compared.largest,
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence torch's exporter, which reports its progress and missing optional packages."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


def main(arguments: Sequence[str]) -> None:
    """Write the file and print `OnnxExport`, or exit with a one-line error."""
    source, model, path = arguments
    try:
        study = study_from_json(Path(source).read_text(encoding="utf-8"), source)
        print(json.dumps(asdict(export_file(study, Path(model), Path(path)))))
    except WardroundError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(sys.argv[1:])
