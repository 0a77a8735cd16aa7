"""Tensors and their manifest in one safetensors file: written atomically, hashed, never unpickled.

A file is whole or it is not there: it is written beside its place, fsynced, renamed, and the folder fsynced. Its
metadata holds the manifest (JSON) and one SHA-256 over manifest and tensors, so that a flipped bit, a cut file or an
edited number is noticed on loading. Used for the server's checkpoints of every round and for the model that a run
releases.
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
from wardround.wire.packets import weights_sha256

FORMAT = "wardround-1"
SUFFIX = ".safetensors"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A file that was read and found whole."""

    path: Path
    tensors: dict[str, np.ndarray]
    manifest: dict[str, Any]


def save_checkpoint(path: Path, tensors: Mapping[str, np.ndarray], manifest: Mapping[str, Any]) -> None:
    """Write tensors and a JSON manifest to `path`, durably: after the return a crash of the machine keeps them.

    A file of that name is replaced in one step. Raises `WardroundError` when the disk is full or the folder cannot be
    written, `ValueError` for a manifest that JSON cannot hold (write an infinite epsilon as "inf").
    """
    from safetensors.numpy import save

    text = json.dumps(manifest, sort_keys=True, separators=(",", ":"), allow_nan=False)
    metadata = {"format": FORMAT, "manifest": text, "sha256": _digest(text, tensors)}
    # Not safetensors' own save_file: its temporary file has a random name, so each kill would leave one behind.
    content = save({name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}, metadata=metadata)
    try:
        write_file(path, content)
    except OSError as error:
        mend = "free some space or choose another folder"
        raise WardroundError(f"{path}: cannot be written: {error.strerror}; {mend}") from None


def load_checkpoint(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read tensors and manifest. Raises `ModelError`, one line, for a file missing, damaged or of another kind."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file") from None
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, OverflowError, AttributeError):
        raise ModelError(f"{path}: damaged, or not a safetensors file; use a copy that is whole") from None
    if metadata.get("format") != FORMAT or "manifest" not in metadata:
        raise ModelError(f"{path}: not written by this program (format {FORMAT}), or its header is damaged")
    if _digest(metadata["manifest"], tensors) != metadata.get("sha256"):
        raise ModelError(f"{path}: damaged or altered: its content does not have the hash it was written with")
    return tensors, json.loads(metadata["manifest"])


def latest_checkpoint(folder: Path, warn: Callable[[str], None]) -> Checkpoint | None:
    """The newest whole checkpoint of a folder, by the order of file names; None when there is none at all.

    A damaged newest file (a failing disk: a kill cannot make one) is not passed over in silence: `warn` gets one line
    that names it, and the file before it is taken. That repeats a round with the same weights, which costs no privacy,
    since a site answers a settled round with the same bytes. Raises `ModelError` when every file is damaged.
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
