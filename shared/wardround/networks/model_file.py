"""Reading the weights of a model file: a run's released model, or what `wardround-sim pretrain` wrote."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from wardround.errors import ModelError
from wardround.networks.fingerprint import possible_architectures


def read_model_file(path: Path, expected_sha256: str | None) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file, read once, so that what is hashed is what is used."""
    try:
        content = path.read_bytes()
        if expected_sha256 and hashlib.sha256(content).hexdigest() != expected_sha256:
            raise ModelError(f"{path}: changed since the study was read; start again with the file you mean")
        tensors = load(content)
    except FileNotFoundError:
        raise ModelError(f"{path}: no such model file") from None
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path}: cannot be read as a safetensors model file ({error})") from None
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return tensors, header.get("__metadata__", {})


def load_strictly(network: nn.Module, tensors: dict[str, Tensor], metadata: dict[str, str], complaint: str) -> None:
    """Copies the tensors in. Raises `ModelError` that names the first mismatch by the order of names."""
    wanted = network.state_dict()
    for name in sorted(wanted.keys() | tensors.keys()):
        if name not in tensors:
            raise ModelError(f"{complaint} {name} is missing")
        if name not in wanted:
            raise ModelError(f"{complaint} {name} is not part of it")
        found, right = tensors[name], wanted[name]
        if found.shape != right.shape:
            raise ModelError(f"{complaint} {name} has shape {tuple(found.shape)}, needs {tuple(right.shape)}")
        if found.dtype != right.dtype:
            raise ModelError(f"{complaint} {name} has type {found.dtype}, needs {right.dtype}")
        if not found.isfinite().all():
            raise ModelError(f"{complaint} {name} holds values that are not finite")
    network.load_state_dict(tensors, strict=True)
    written = _written_architecture(metadata)
    if written is not None and written not in possible_architectures(network):
        raise ModelError(f"{complaint} its names and shapes fit, but it was written for another architecture")


def _written_architecture(metadata: dict[str, str]) -> str | None:
    """The architecture's hash in a file's metadata, or in the manifest `storage/checkpoint.py` puts there; None when
    absent.
    """
    if "architecture_sha256" in metadata:
        return metadata["architecture_sha256"]
    try:
        manifest = json.loads(metadata.get("manifest", "{}"))
    except json.JSONDecodeError:
        return None
    return manifest.get("architecture_sha256") if isinstance(manifest, dict) else None
