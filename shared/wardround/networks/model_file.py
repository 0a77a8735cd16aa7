"""Model files: those that ship with the package, or that `wardround-sim pretrain` writes, and those that a study names.

The shipped files, and the replacements that `wardround-sim pretrain` writes, come from phantoms only, so using them
costs no privacy. Such a file contains the SHA-256 of its own tensors, so that damage is detected whatever the file's
name. A study identifies a file, such as a run's released model, by the hash of its content.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from wardround.errors import ModelError
from wardround.storage.atomic import write_file
from wardround.storage.disk_errors import writing


@dataclass(frozen=True, kw_only=True)
class ShippedWeights:
    """The content of a shipped file. `name` identifies the file in error messages."""

    name: str
    tensors: dict[str, Tensor]
    metadata: dict[str, str]

    def check_hash(self) -> None:
        """Raise `ModelError` if the tensors do not match the hash in the file."""
        if tensors_sha256(self.tensors) != self.metadata.get("tensors_sha256"):
            raise ModelError(
                f"{self.name}: its tensors do not match its hash, so it was altered or damaged; get it again"
            )


def write_shipped(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a file that `read_shipped` reads, atomically. Raises a one-line `UsageError` if it cannot be written."""
    with writing(path):
        write_file(path, save(tensors, metadata=metadata), mode=None)


def read_shipped(package: str, shipped: str, path: str | None = None) -> ShippedWeights:
    """Read the file `shipped` of a package, or the file `path`. Its hash is checked separately: see `check_hash`.

    Raises `ModelError` if the file is missing or not a safetensors file.
    """
    source, name = (str(files(package) / shipped), shipped) if path is None else (path, path)
    try:
        with safe_open(source, framework="pt") as stored:
            metadata = stored.metadata() or {}
            tensors = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"{name}: cannot be read as a model file; give the file that `wardround-sim pretrain` wrote"
        ) from error
    return ShippedWeights(name=name, tensors=tensors, metadata=metadata)


def read_model_file(path: Path, expected_sha256: str | None) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return tensors and metadata of a safetensors file, read once, so that the hashed content is the content used.

    Raises `ModelError` if the file is missing, damaged, or differs from `expected_sha256`.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ModelError(f"{path}: no such model file") from None
    except OSError as error:
        raise ModelError(f"{path}: cannot be read as a safetensors model file ({error})") from None
    if expected_sha256 and hashlib.sha256(content).hexdigest() != expected_sha256:
        raise ModelError(f"{path}: was changed after the study was read; start again with the intended file")
    return tensors_of(content, path)


def tensors_of(content: bytes, path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return tensors and metadata of the content of a safetensors file. `path` is for error messages.

    Raises `ModelError` if the content is damaged.
    """
    try:
        tensors = load(content)
    except SafetensorError as error:
        raise ModelError(f"{path}: cannot be read as a safetensors model file ({error})") from None
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return tensors, header.get("__metadata__", {})


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 in hex of names, dtypes, shapes and bytes, in the order of names.

    The hash depends only on the tensors, not on the device or file that stores them.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
