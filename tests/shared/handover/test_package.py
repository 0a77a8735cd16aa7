"""The folder of an exported model: it is read as it was written, and a wrong or hostile one is refused in one line."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from builders.packages import edit_record, write_package
from builders.runs import study_of

from wardround.errors import ModelError
from wardround.handover.network import load_network
from wardround.handover.package import Package, file_entry, open_package, read_model
from wardround.handover.package import study_of as rebuilt
from wardround.networks.build import initial_network
from wardround.study.load import parse_study


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_package(tmp_path / "model", study_of())


def refused(folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        open_package(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_package_has_the_study_the_record_and_the_weights(folder: Path) -> None:
    package = open_package(folder)
    assert package.study == study_of() and package.content["labels"] == ["benign", "malignant"]
    assert package.has_onnx and read_model(package, "model.onnx") == b"not a network"
    wanted = initial_network(study_of()).state_dict()
    network = load_network(package)
    assert not network.training
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, wanted[name]), name


def test_a_study_that_started_from_a_file_is_rebuilt_from_its_canonical_form() -> None:
    content = study_of().model_dump()
    content["model"].update(init="/elsewhere/start.safetensors", init_sha256="a" * 64)
    study = parse_study(content)
    assert rebuilt(json.loads(study.canonical()), Path("model.json")).sha256() == study.sha256()


@pytest.mark.parametrize("name", ["model.safetensors", "model.onnx"])
def test_a_changed_missing_or_replaced_file_is_refused(folder: Path, name: str) -> None:
    path = folder / name
    content = path.read_bytes()
    package = open_package(folder)
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert "damaged or altered" in refused(folder) and name in refused(folder)
    with pytest.raises(ModelError, match="damaged or altered"):
        read_model(package, name)
    path.unlink()
    assert "is missing" in refused(folder)
    os.mkfifo(path)
    assert "not a file" in refused(folder)  # at once: opening a pipe would wait for a writer
    path.unlink()
    path.symlink_to("/dev/zero")
    assert "not a file" in refused(folder)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"schema": 2}, "not of schema 1"),
        ({"study_sha256": "b" * 64}, "study_sha256 does not fit"),
        ({"task": "synthesis"}, "task does not fit"),
        ({"labels": ["malignant", "benign"]}, "labels does not fit"),
        ({"architecture": "resnet-small"}, "architecture does not fit"),
        ({"familiarity": None}, "familiarity does not fit"),
        ({"familiarity": {"threshold": "1"}}, "familiarity.threshold is missing or wrong"),
        ({"files": {}}, "files does not fit"),
        ({"files": {"../model.onnx": {"sha256": "a" * 64, "bytes": 1}}}, "is missing or wrong"),
        ({"files": {"/etc/passwd": {"sha256": "a" * 64, "bytes": 1}}}, "is missing or wrong"),
        ({"run": "a\x1b[31m"}, "run is missing or wrong"),
        ({"unsafe": 1}, "unsafe is missing or wrong"),
        ({"study": {"study": {"name": "t", "surprise": 1}}}, "unknown key study.surprise"),
        ({"study": []}, "study is missing or wrong"),
    ],
)
def test_a_wrong_record_is_refused_by_field(folder: Path, changes: dict, reason: str) -> None:
    edit_record(folder, **changes)
    assert reason in refused(folder)


@pytest.mark.parametrize("text", ["", "[", "[]", "null", "[" * 100_000, '{"schema": NaN}', "9" * 9999, "\xff"])
def test_a_record_that_is_no_record_is_refused(folder: Path, text: str) -> None:
    (folder / "model.json").write_bytes(text.encode("latin-1"))
    assert "model.json" in refused(folder)


def test_a_huge_record_is_refused_unread(folder: Path) -> None:
    with open(folder / "model.json", "r+b") as file:
        file.truncate(2**33)
    assert "larger than" in refused(folder)


def test_weights_of_another_architecture_are_refused(folder: Path, tmp_path: Path) -> None:
    other = study_of().model_dump()
    other["model"].update(name="resnet-small")
    second = write_package(tmp_path / "other", parse_study(other))
    (folder / "model.safetensors").write_bytes((second / "model.safetensors").read_bytes())
    files = {name: file_entry(folder / name) for name in ("model.safetensors", "model.onnx")}
    edit_record(folder, files=files)
    with pytest.raises(ModelError, match="not a seed-cnn for this study"):
        load_network(open_package(folder))
    edit_record(second, architecture_sha256="c" * 64)
    with pytest.raises(ModelError, match="its architecture is not the one in model.json"):
        load_network(open_package(second))


def test_a_study_of_a_file_needs_no_start_file_to_load(tmp_path: Path) -> None:
    content = study_of().model_dump()
    start = write_package(tmp_path / "start", study_of()) / "model.safetensors"
    content["model"].update(init=str(start), init_sha256=file_entry(start)["sha256"])
    folder = write_package(tmp_path / "model", parse_study(content))
    start.unlink()
    package: Package = open_package(folder)
    assert load_network(package) is not None


def test_no_folder(tmp_path: Path) -> None:
    assert "no such folder" in refused(tmp_path / "nothing")
