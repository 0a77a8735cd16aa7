"""The exported ONNX file computes what torch does, on images that are hard for an exported graph, without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from wardround.errors import ModelError
from wardround.handover import equality
from wardround.handover.equality import check_equality, torch_outputs
from wardround.handover.onnx_export import export
from wardround.handover.onnx_model import check_self_contained, onnx_model
from wardround.networks.build import initial_network
from wardround.study.load import Study, parse_study
from wardround.tasks.classification.exported import Released, fixed_rows
from wardround.tasks.classification.familiarity import familiarity_of

NETWORKS = (  # name, init, trainable, pixels, labels
    ("phantom-encoder", "phantom", "head", 64, 2),
    ("phantom-encoder", "phantom", "all", 64, 2),
    ("seed-cnn", "random", "all", 64, 2),
    ("resnet-small", "random", "all", 64, 3),
)
HEAD, SEED_CNN = NETWORKS[0], NETWORKS[2]
SLOW_NETWORKS = (
    *NETWORKS,
    ("phantom-encoder", "phantom", "head", 48, 3),
    ("phantom-encoder", "random", "all", 96, 2),
    ("resnet-large", "random", "all", 64, 2),
    ("densenet121", "random", "all", 64, 2),
)


IMAGES = np.random.default_rng(8).integers(0, 256, (20, 1, 64, 64), dtype=np.uint8)
_FILES: dict[str, bytes] = {}  # exports take seconds


def named(network: tuple) -> str:
    return "-".join(map(str, network))


def classification(name: str, init: str, trainable: str, pixels: int, labels: int) -> Study:
    return parse_study(
        {
            "study": {"name": "tiny", "rounds": 2},
            "data": {
                "image_size": pixels, "labels": ("benign", "malignant", "other")[:labels], "region": "marked",
                "spacing_mm": 0.7,
            },
            "model": {"name": name, "init": init, "trainable": trainable},
            "privacy": {"epsilon": 8.0, "delta": 1e-5, "max_grad_norm": 1.0, "nominal_patients": 100},
            "aggregation": {"nominal_sites": 2},
        }
    )  # fmt: skip


def released(study: Study) -> Released:
    """The study's network with a head as after training: some networks start with a head of zeros."""
    network = initial_network(study)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        network.head.weight.add_(torch.randn(network.head.weight.shape, generator=generator) * 0.05)
        network.head.bias.add_(0.3)
    return Released(network, familiarity_of(study)[0]).eval()


def exported(study: Study, folder: Path) -> tuple[Released, Path]:
    path = folder / "model.onnx"
    if (key := study.canonical()) not in _FILES:
        module = released(study)
        export(module, study, path)
        _FILES[key] = path.read_bytes()
    path.write_bytes(_FILES[key])
    return released(study), path


@pytest.mark.parametrize(
    "network", [HEAD, *(pytest.param(one, marks=pytest.mark.slow) for one in NETWORKS[1:])], ids=named
)
def test_onnx_equals_torch(tmp_path: Path, network) -> None:
    study = classification(*network)
    module, path = exported(study, tmp_path)
    found = check_equality(module, path.read_bytes(), study)
    assert found.rows == 60 and 0 <= found.largest <= 1e-5
    outputs, wanted = onnx_model(path.read_bytes(), study).run(IMAGES), torch_outputs(module, IMAGES)
    assert np.abs(outputs[0] - wanted[0]).max() <= 1e-5
    assert [one.name for one in tmp_path.iterdir()] == ["model.onnx"]  # no file with weights beside it
    check_self_contained(path.read_bytes())


@pytest.mark.slow
@pytest.mark.parametrize("network", SLOW_NETWORKS, ids=named)
def test_onnx_equals_torch_on_500_images(tmp_path: Path, network) -> None:
    study = classification(*network)
    module, path = exported(study, tmp_path)
    assert check_equality(module, path.read_bytes(), study, rows=500).rows == 500


def test_an_image_gives_the_same_outputs_alone_and_in_a_batch(tmp_path: Path) -> None:
    study = classification(*HEAD)
    _, path = exported(study, tmp_path)
    model, images = onnx_model(path.read_bytes(), study), fixed_rows(study, 37)  # three passes
    logits, distance = model.run(images)
    assert logits.shape == (37, 1) and distance.shape == (37,) and logits.dtype == distance.dtype == np.float32
    for row in (0, 15, 16, 36):
        one = model.run(images[row : row + 1])
        np.testing.assert_allclose(one[0][0], logits[row], atol=1e-6)
        np.testing.assert_allclose(one[1][0], distance[row], rtol=1e-6)
    assert [part.shape for part in model.run(images[:0])] == [(0, 1), (0,)]
    for wrong in (images.astype(np.float32), images[:, :, :32], images[0]):
        with pytest.raises(ModelError, match="the model reads images uint8"):
            model.run(wrong)


def test_the_fixed_images_contain_ties_that_an_otsu_threshold_in_float32_decides_differently() -> None:
    """Without these images the comparison would not show that both sides add in the same precision."""
    study = classification(*HEAD)
    images = torch.from_numpy(fixed_rows(study, 500)[400:].reshape(100, -1)).float()
    counts = torch.stack([torch.bincount(row.long(), minlength=256) for row in images]).double()
    counts[:, :3] = 0
    share = counts / counts.sum(1, keepdim=True)
    below, moment = share.cumsum(1), (share * torch.arange(256)).cumsum(1)
    between = (moment[:, -1:] * below - moment) ** 2 / (below * (1 - below)).clamp(min=1e-4)
    best = between.topk(80, dim=1).values  # the plateaus of both thresholds, at most 55 levels wide each
    assert ((best[:, 0] - best[:, 1]).abs() < 1e-9 * best[:, 0]).all()


@pytest.mark.slow
def test_a_file_that_computes_something_else_is_refused(tmp_path: Path) -> None:
    study = classification(*SEED_CNN)
    module, path = exported(study, tmp_path)
    with torch.no_grad():
        module.network.head.bias.add_(1e-3)
    with pytest.raises(ModelError, match="differs from the network"):
        check_equality(module, path.read_bytes(), study)


def test_a_difference_that_is_not_a_number_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = classification(*SEED_CNN)
    module, path = exported(study, tmp_path)
    wrong = np.full((60, 1), np.nan, np.float32), np.zeros(60, np.float32)
    monkeypatch.setattr(equality, "torch_outputs", lambda released, images: wrong)
    with pytest.raises(ModelError, match="differs from the network"):
        check_equality(module, path.read_bytes(), study)


def test_onnxruntime_alone_runs_the_file(tmp_path: Path) -> None:
    study = classification(*HEAD)
    module, path = exported(study, tmp_path)
    images = fixed_rows(study, 20)
    np.save(tmp_path / "images.npy", images)
    code = f"""
import sys
for name in ("torch", "onnx", "onnxscript", "wardround", "monai"):
    sys.modules[name] = None  # an import of it fails
import json, numpy as np, onnxruntime
session = onnxruntime.InferenceSession({str(path)!r})
logits, distance = session.run(["logits", "distance"], {{"images": np.load({str(tmp_path / "images.npy")!r})}})
print(json.dumps([logits.tolist(), distance.tolist()]))
"""
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, timeout=120, check=True)
    wanted = torch_outputs(module, images)
    for found, other in zip(json.loads(done.stdout), wanted, strict=True):
        np.testing.assert_allclose(np.array(found), other, rtol=1e-5, atol=1e-5)


def changed(path: Path, change) -> bytes:
    model = onnx.load_model(path)
    change(model)
    return model.SerializeToString()


def test_a_file_that_reads_others_or_brings_operators_is_refused(tmp_path: Path) -> None:
    study = classification(*SEED_CNN)
    _, path = exported(study, tmp_path)

    def elsewhere(model: onnx.ModelProto) -> None:
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="../../etc/passwd")

    def elsewhere_in_a_node(model: onnx.ModelProto) -> None:
        node = helper.make_node("Constant", [], ["x"], value=helper.make_tensor("x", TensorProto.FLOAT, [1], [0.0]))
        node.attribute[0].t.data_location = TensorProto.EXTERNAL
        model.graph.node.insert(0, node)

    def own(model: onnx.ModelProto) -> None:
        model.opset_import.add(domain="com.example", version=1)

    def renamed(model: onnx.ModelProto) -> None:
        model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT

    for change, reason in (
        (elsewhere, "reads weights from another file"),
        (elsewhere_in_a_node, "reads weights from another file"),
        (own, "has operators of its own"),
        (renamed, "onnxruntime cannot open it|not those of the study"),
    ):
        with pytest.raises(ModelError, match=reason):
            onnx_model(changed(path, change), study)
    for content in (b"", b"not an ONNX file", path.read_bytes()[: path.stat().st_size // 2]):
        with pytest.raises(ModelError):
            onnx_model(content, study)
    with pytest.raises(ModelError, match="not those of the study"):
        onnx_model(path.read_bytes(), classification("seed-cnn", "random", "all", 64, 3))
