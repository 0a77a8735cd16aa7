"""Folders of exported models, written by hand: real weights, and any bytes in place of the ONNX file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from wardround.handover.package import MODEL_FILE, ONNX_FILE, RECORD_FILE, file_entry, has_distance, model_files
from wardround.networks.build import initial_network
from wardround.networks.fingerprint import architecture_sha256
from wardround.storage.checkpoint import save_checkpoint
from wardround.study.load import Study


def write_package(folder: Path, study: Study, onnx: bytes = b"not a network") -> Path:
    """Write model.safetensors with the study's initial weights, model.onnx and model.json."""
    folder.mkdir(parents=True)
    network = initial_network(study)
    tensors = {name: tensor.detach().numpy().copy() for name, tensor in network.state_dict().items()}
    architecture = architecture_sha256(network)
    manifest = {"kind": "model", "study_sha256": study.sha256(), "architecture_sha256": architecture}
    save_checkpoint(folder / MODEL_FILE, tensors, manifest)
    if ONNX_FILE in model_files(study):
        (folder / ONNX_FILE).write_bytes(onnx)
    write_record(folder, record_of(folder, study, architecture))
    return folder


def record_of(folder: Path, study: Study, architecture: str) -> dict[str, Any]:
    return {
        "schema": 1,
        "run": "tiny-20261124-220105-e0b46f",
        "task": study.study.task,
        "study": json.loads(study.canonical()),
        "study_sha256": study.sha256(),
        "architecture": study.model.name,
        "architecture_sha256": architecture,
        "labels": list(study.data.labels),
        "created": "2026-11-24T22:01:05Z",
        "privacy": {"epsilon_promised": study.privacy.epsilon, "delta": study.privacy.delta},
        "federated_test": None,
        "calibration": None,
        "familiarity": {"threshold": 1.5} if has_distance(study) else None,
        "unsafe": True,
        "unsafe_reasons": ["no attack report"],
        "attack": None,
        "files": {name: file_entry(folder / name) for name in model_files(study)},
    }


def write_record(folder: Path, record: dict[str, Any]) -> None:
    (folder / RECORD_FILE).write_text(json.dumps(record))


def edit_record(folder: Path, **changes: Any) -> None:
    write_record(folder, {**json.loads((folder / RECORD_FILE).read_text()), **changes})
