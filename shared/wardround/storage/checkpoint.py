"""Tensors and their manifest in one safetensors file: written atomically, hashed, never unpickled.

Writing is atomic and durable: the file is written under a temporary name, fsynced and renamed, and the folder is
fsynced. The metadata contains the manifest (JSON) and one SHA-256 of manifest and tensors, so that loading detects a
flipped bit, a truncated file or an edited number. The format is used for the server's checkpoint of every round and for
the model that a run releases.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wardround.errors import ModelError, WardroundError
from wardround.storage.atomic import write_file
from wardround.storage.disk_errors import cause
from wardround.wire.packets import weights_sha256

FORMAT = "wardround-1"
SUFFIX = ".safetensors"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The content of a checkpoint file that was read and verified."""

    path: Path
    tensors: dict[str, np.ndarray]
    manifest: dict[str, Any]


def save_checkpoint(path: Path, tensors: Mapping[str, np.ndarray], manifest: Mapping[str, Any]) -> None:
    """Write tensors and a JSON manifest to `path`, so that they survive a crash of the machine after the return.

    A file of that name is replaced atomically. Raises `WardroundError` if the disk is full or the folder cannot be
    written, and `ValueError` for a manifest that JSON cannot represent (write an infinite epsilon as "inf").
    """
    from safetensors.numpy import save

    text = json.dumps(manifest, sort_keys=True, separators=(",", ":"), allow_nan=False)
    metadata = {"format": FORMAT, "manifest": text, "sha256": _digest(text, tensors)}
    # safetensors' save_file is not used: its temporary file has a random name, so each kill would leave one behind.
    content = save({name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}, metadata=metadata)
    try:
        write_file(path, content)
    except OSError as error:
        raise WardroundError(f"{path}: cannot be written: {cause(error)}") from None


def load_checkpoint(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read tensors and manifest. Raises a one-line `ModelError` for a missing, damaged or foreign file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file") from None
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, OverflowError, AttributeError):
        raise ModelError(f"{path}: damaged, or not a safetensors file; use an intact copy") from None
    if metadata.get("format") != FORMAT or "manifest" not in metadata:
        raise ModelError(f"{path}: not written by this program (format {FORMAT}), or its header is damaged")
    if _digest(metadata["manifest"], tensors) != metadata.get("sha256"):
        raise ModelError(f"{path}: damaged or altered: its hash differs from the one it was written with")
    return tensors, json.loads(metadata["manifest"])


def latest_checkpoint(folder: Path, warn: Callable[[str], None]) -> Checkpoint | None:
    """Return the newest intact checkpoint of a folder, by the order of file names; None if the folder has none.

    For every damaged file that is skipped (a disk fault: a kill cannot cause one), `warn` is called with one line that
    names it. Using an older file repeats a round with the same weights, which costs no privacy, because a site answers
    a settled round with the same bytes. Raises `ModelError` if every file is damaged.
    """
    paths = sorted(folder.glob(f"*{SUFFIX}"), reverse=True)
    paths = [path for path in paths if not path.name.startswith(".")]
    for path in paths:
        try:
            tensors, manifest = load_checkpoint(path)
        except ModelError as error:
            warn(f"{error}; going back to the checkpoint before it")
            continue
        return Checkpoint(path=path, tensors=tensors, manifest=manifest)
    if paths:
        raise ModelError(f"{folder}: none of its {len(paths)} checkpoints can be read; restore it from a backup")
    return None


def _digest(manifest: str, tensors: Mapping[str, np.ndarray]) -> str:
    return hashlib.sha256(f"{FORMAT}\n{manifest}\n{weights_sha256(tensors)}".encode()).hexdigest()
