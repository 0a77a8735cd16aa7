"""Write a released classifier as one ONNX file with its preprocessing, and prove that it computes what torch does.

    python -I -m wardround.handover.onnx_export STUDY.json MODEL.safetensors OUT.onnx

The server starts this module as a process of its own, because it never imports torch. The process prints one line of
JSON, `OnnxExport`. `package.py` describes the file's input and outputs.

Every operator is exported as it is: crop, Otsu's threshold and the eight views are part of the graph. H and W are
fixed to the study's image size, N is free.
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
from torch import Tensor, nn

from wardround.errors import ModelError, WardroundError
from wardround.handover.equality import check_equality
from wardround.handover.network import network_with
from wardround.handover.onnx_model import DISTANCE, IMAGES, LOGITS, OPSET
from wardround.networks.fingerprint import architecture_sha256
from wardround.sources.images.study import image_data
from wardround.storage.atomic import write_file
from wardround.storage.disk_errors import writing
from wardround.study.load import Study, study_from_json
from wardround.tasks.classification.familiarity import familiarity_of

LARGEST_BATCH = 2**20  # of the exported graph; a bound that torch.export needs, and no limit in practice


@dataclass(frozen=True, kw_only=True)
class OnnxExport:
    """What an export found: the network's architecture, the threshold of `distance`, and the equality with torch.

    `largest_difference` over `images_compared` images is that of `equality.Compared`.
    """

    architecture_sha256: str
    familiarity_threshold: float
    images_compared: int
    largest_difference: float


class Released(nn.Module):
    """The network and its familiarity score as one module with two outputs."""

    def __init__(self, network: nn.Module, familiarity: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.familiarity = familiarity

    def forward(self, images_NCHW: Tensor) -> tuple[Tensor, Tensor]:
        """images_NCHW, uint8 -> logits (N, K) and distance (N,), float32."""
        return self.network(images_NCHW), self.familiarity(images_NCHW)


def export(network: nn.Module, familiarity: nn.Module, study: Study, path: Path) -> None:
    """Write `network` and `familiarity` to one ONNX file, atomically.

    Args:
        network: Maps images (N, C, H, W) to logits (N, K).
        familiarity: Maps images (N, C, H, W), uint8, to a distance (N,) float32.
        study: Its `[data]` gives C, H and W.
        path: The file to write.

    Raises:
        ModelError: torch cannot export the network (one line).
        UsageError: The file cannot be written.
    """
    released = Released(network, familiarity).eval()
    sample = torch.zeros(2, *image_data(study).shape_CHW, dtype=torch.uint8)
    batch = torch.export.Dim("N", min=1, max=LARGEST_BATCH)
    try:
        with torch.no_grad(), _quiet():
            program = torch.onnx.export(
                released, (sample,), dynamo=True, opset_version=OPSET, verbose=False, external_data=False,
                input_names=[IMAGES], output_names=[LOGITS, DISTANCE], dynamic_shapes=({0: batch},),
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
    """Export the released model of a study, and compare the written file with torch on many images.

    Raises:
        ModelError: The file does not fit the study, cannot be exported, or the ONNX file computes something else.
    """
    network = network_with(study, model.read_bytes(), model)
    familiarity, threshold = familiarity_of(study)
    export(network, familiarity, study, path)
    compared = check_equality(Released(network, familiarity), path.read_bytes(), study)
    return OnnxExport(
        architecture_sha256=architecture_sha256(network),
        familiarity_threshold=threshold,
        images_compared=compared.images,
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
