"""The MONAI bundle: MONAI runs it and gets the outputs of the ONNX file; no text of a study is ever evaluated."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wardround.handover.bundle import MONAI_VERSION, bundle_files, inference_config, metadata
from wardround.handover.onnx_export import export
from wardround.handover.onnx_model import onnx_model
from wardround.networks.build import initial_network
from wardround.study.load import Study, parse_study
from wardround.tasks.classification.exported import exported

HOSTILE = ("$__import__('os').system('touch executed')", "@network_def", "%configs/metadata.json")
# The mandatory keys of MONAI's bundle specification; its JSON schema is on a server that tests cannot reach.
KEYS = {
    "schema", "version", "changelog", "monai_version", "pytorch_version", "numpy_version", "required_packages_version",
    "task", "description", "authors", "copyright", "network_data_format",
}  # fmt: skip
TENSOR_KEYS = {
    "type", "format", "num_channels", "spatial_shape", "dtype", "value_range", "is_patch_data", "channel_def",
}  # fmt: skip


def study_with(channels: str = "grey", labels: tuple[str, ...] = ("benign", "malignant")) -> Study:
    data = {"image_size": 32, "labels": labels, "channels": channels, "region": "marked", "spacing_mm": 0.7}
    if channels == "windows":
        data["window_hu"] = [[-1000, 400], [-160, 240]]
    return parse_study(
        {
            "study": {"name": "tiny", "rounds": 2},
            "data": data,
            "model": {"name": "seed-cnn", "init": "random", "trainable": "all"},
            "privacy": {"epsilon": 8.0, "delta": 1e-5, "max_grad_norm": 1.0, "nominal_patients": 100},
            "aggregation": {"nominal_sites": 2},
        }
    )


def record_for(study: Study) -> dict:
    return {
        "run": "tiny-1", "kind": "federation", "task": "classification", "study": json.loads(study.canonical()),
        "study_sha256": study.sha256(), "architecture": study.model.name, "architecture_sha256": "a" * 64,
        "labels": list(study.data.labels), "numbers": 5, "created": "2026-11-24T22:01:05Z", "rounds": 2, "sites": {},
        "privacy": {"unit": "patient", "relation": "add or remove one", "epsilon_promised": 8.0, "delta": 1e-5},
        "missing": [], "phantoms": False, "released": None, "federated_test": None, "simulated_test": None,
        "calibration": None, "familiarity": {"threshold": 4.0}, "attack": None, "license": "other",
        "onnx": {"images_compared": 60, "largest_difference": 1e-6}, "unsafe": False, "unsafe_reasons": [],
        "software": {"torch": "2.13.0+cpu", "numpy": "2.4.6", "onnxruntime": "1.32.0"},
        "files": {"model.onnx": {"sha256": "b" * 64, "bytes": 1}},
    }  # fmt: skip


@pytest.fixture(scope="module")
def onnx_of(tmp_path_factory: pytest.TempPathFactory):
    made: dict[str, bytes] = {}

    def make(study: Study) -> bytes:
        if (key := study.canonical()) not in made:
            path = tmp_path_factory.mktemp("onnx") / "model.onnx"
            export(exported(initial_network(study), study)[0], study, path)
            made[key] = path.read_bytes()
        return made[key]

    return make


def write_bundle(folder: Path, study: Study, onnx: bytes) -> Path:
    for name, content in bundle_files(record_for(study), study, onnx).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (folder / "images").mkdir()
    return folder


@pytest.fixture
def monai_workflow(monkeypatch: pytest.MonkeyPatch):
    """MONAI's workflow of a bundle. MONAI puts the bundle on the module path; the test takes it off again."""
    from monai.bundle import ConfigWorkflow

    monkeypatch.setattr(sys, "path", sys.path[:])
    for name in ("scripts", "scripts.onnx_network"):
        monkeypatch.delitem(sys.modules, name, raising=False)

    def open_workflow(folder: Path) -> ConfigWorkflow:
        workflow = ConfigWorkflow(
            config_file=str(folder / "configs" / "inference.json"),
            meta_file=str(folder / "configs" / "metadata.json"),
            logging_file=False,
            workflow_type="infer",
            bundle_root=str(folder),
        )
        workflow.initialize()
        return workflow

    yield open_workflow
    for name in ("scripts", "scripts.onnx_network"):
        sys.modules.pop(name, None)


def images_of(study: Study, folder: Path, count: int = 35) -> np.ndarray:
    """Write `count` images, more than a batch, and return them, uint8 (N, C, H, W). H and W are not exchangeable."""
    images = np.random.default_rng(3).integers(0, 256, (count, study.data.channel_count, 32, 32), dtype=np.uint8)
    for number, image_CHW in enumerate(images):
        path = folder / f"{number:03d}"
        if study.data.channel_count == 2:
            np.save(path.with_suffix(".npy"), image_CHW)
        else:
            picture = image_CHW[0] if len(image_CHW) == 1 else np.moveaxis(image_CHW, 0, 2)
            Image.fromarray(picture).save(path.with_suffix(".png"))
    return images


@pytest.mark.parametrize("channels", ["grey", "rgb", "windows"])
def test_monai_runs_the_bundle_and_gets_the_outputs_of_the_onnx_file(
    tmp_path: Path, onnx_of, monai_workflow, channels: str
) -> None:
    study = study_with(channels)
    folder = write_bundle(tmp_path / "bundle", study, onnx_of(study))
    images = images_of(study, folder / "images")
    workflow = monai_workflow(folder)
    workflow.run()
    workflow.finalize()
    with open(folder / "predictions.csv", newline="") as file:
        heading, *rows = list(csv.reader(file))
    assert heading == ["image", "logit malignant", "distance"]
    assert [Path(row[0]).stem for row in rows] == [f"{number:03d}" for number in range(len(images))]
    logits, distance = onnx_model(onnx_of(study), study).run(images)
    found = np.array([[float(value) for value in row[1:]] for row in rows])
    np.testing.assert_allclose(found, np.concatenate([logits, distance[:, None]], axis=1), rtol=1e-5, atol=1e-6)


def test_the_bundle_has_what_monai_asks_for_and_no_pickle(tmp_path: Path, onnx_of, monai_workflow) -> None:
    study = study_with()
    folder = write_bundle(tmp_path / "bundle", study, onnx_of(study))
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {
        "configs/metadata.json",
        "configs/inference.json",
        "models/model.onnx",
        "docs/README.md",
        "LICENSE",
    } <= names
    assert not [name for name in names if name.endswith((".pt", ".pth", ".ts", ".pkl"))]
    found = json.loads((folder / "configs" / "metadata.json").read_text())
    assert found.keys() >= KEYS and MONAI_VERSION == version("monai") == found["monai_version"]
    tensors = found["network_data_format"]
    for tensor in (tensors["inputs"]["image"], tensors["outputs"]["pred"]):
        assert tensor.keys() >= TENSOR_KEYS
    workflow = monai_workflow(folder)
    workflow.run()  # of no images: MONAI makes the bundle's modules importable here
    for name in ("bundle_root", "device", "dataset_dir", "dataset", "network_def", "inferer", "version"):
        assert getattr(workflow, name) is not None
    assert workflow.spatial_shape == [32, 32] and workflow.channel_def == {"0": "logit malignant", "1": "distance"}


def test_no_text_of_a_study_is_evaluated(tmp_path: Path, onnx_of, monai_workflow, monkeypatch) -> None:
    study, plain = study_with(labels=HOSTILE), study_with(labels=("a", "b", "c"))
    folder = write_bundle(tmp_path / "bundle", study, onnx_of(plain))
    images_of(study, folder / "images", count=2)
    monkeypatch.chdir(tmp_path)
    workflow = monai_workflow(folder)
    workflow.run()
    for key, value in metadata(record_for(study), study).items():
        assert workflow.parser.get_parsed_content(f"_meta_::{key}") == value, key
    assert workflow.parser.get_parsed_content("columns") == [*(f"logit {label}" for label in HOSTILE), "distance"]
    assert not (tmp_path / "executed").exists()


def test_an_array_with_pickled_objects_is_refused(tmp_path: Path, onnx_of, monai_workflow) -> None:
    study = study_with("windows")
    folder = write_bundle(tmp_path / "bundle", study, onnx_of(study))
    np.save(folder / "images" / "a.npy", np.array([{"an": "object"}], dtype=object), allow_pickle=True)
    workflow = monai_workflow(folder)
    with pytest.raises(RuntimeError):
        workflow.run()


def test_a_bundle_works_wherever_it_is_copied(tmp_path: Path, onnx_of, monai_workflow) -> None:
    study = study_with()
    folder = write_bundle(tmp_path / "bundle", study, onnx_of(study))
    moved = Path(shutil.move(folder, tmp_path / "a folder with spaces"))
    images_of(study, moved / "images", count=1)
    monai_workflow(moved).run()
    assert (moved / "predictions.csv").is_file()
    assert str(tmp_path) not in json.dumps(inference_config(study))
