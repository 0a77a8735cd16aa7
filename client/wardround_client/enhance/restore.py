"""Restores images at a hospital with a released model: pictures and DICOM files, with the results beside them.

Nothing here trains, no data leave the hospital, and the ledger is not touched. Source files are only read. Shapes: H
rows, W columns.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from wardround.errors import DataError, ModelError
from wardround.storage.checkpoint import load_checkpoint
from wardround.storage.folders import make_folder
from wardround.tasks.reconstruction.degradations import Degradation, Degraded, degradation_of
from wardround.tasks.reconstruction.image_quality import to_8_bit
from wardround.tasks.reconstruction.restorer import Restorer, inputs_of_degraded
from wardround.tasks.reconstruction.study import ReconstructionSection
from wardround_client.enhance.files import NOT_FOR_DIAGNOSIS, new_series_uid, write_derived_dicom, write_png
from wardround_client.sources.images.decoding.crop import luminance, to_grey
from wardround_client.sources.images.decoding.dicom_pixels import frame_count, read_frame
from wardround_client.sources.images.decoding.pictures import read_picture
from wardround_client.sources.images.folder.files import DICOM, PICTURE, file_kind, list_files
from wardround_client.sources.images.quality.reasons import REASONS
from wardround_client.sources.images.records import UnfitImage

MARK = ".restored"
SHORTENED = (
    ".dcm",
    ".png",
    ".jpg",
    ".jpeg",
    ".jp2",
    ".tif",
    ".tiff",
    ".bmp",
    ".gif",
    ".webp",
)  # left out of a result's name
MULTIPLE_PX = 8
LARGEST_SIDE_PX = 4096


@dataclass(frozen=True, kw_only=True)
class RestoringModel:
    """A released restorer: network, the degradation that it reverses, window of CT in HU, and notes for its outputs."""

    network: nn.Module
    degradation: Degradation
    window_hu: tuple[float, float]
    notes: Mapping[str, str]


def load_restoring_model(path: Path) -> RestoringModel:
    """Load the model.safetensors of a finished reconstruction. Raises `ModelError` for any other file."""
    tensors, manifest = load_checkpoint(path)
    section = manifest.get("reconstruction")
    if manifest.get("kind") != "model" or not isinstance(section, dict):
        raise ModelError(f"{path}: is not a reconstruction model; give the model.safetensors of a reconstruction run")
    network = Restorer()
    try:
        network.load_state_dict({name: torch.from_numpy(array) for name, array in tensors.items()}, strict=True)
        degradation = degradation_of(ReconstructionSection.model_validate(section))
    except (RuntimeError, ValueError):
        raise ModelError(f"{path}: was made by another version of wardround; use that version") from None
    low, high = manifest.get("window_hu") or (-1000.0, 400.0)
    return RestoringModel(
        network=network.eval(),
        degradation=degradation,
        window_hu=(float(low), float(high)),
        notes=_notes(path, manifest, degradation),
    )


def _notes(path: Path, manifest: Mapping[str, Any], degradation: Degradation) -> dict[str, str]:
    privacy = manifest.get("privacy") or {}
    epsilon = privacy.get("epsilon", privacy.get("epsilon_promised", "unknown"))
    return {
        "derived": f"computed image, {NOT_FOR_DIAGNOSIS}",
        "software": f"wardround {version('wardround')}",
        "restores": degradation.words(),
        "study": f"{manifest.get('study', 'unknown')} {manifest.get('study_sha256', '')[:16]}",
        "model_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "released": str(manifest.get("released", "trained")),
        "privacy": f"epsilon {epsilon} per patient of the training, delta {privacy.get('delta', 'unknown')}",
    }


@torch.no_grad()
def restore(model: RestoringModel, image_HW: np.ndarray, missing_HW: np.ndarray | None = None) -> np.ndarray:
    """Restore one observed 8-bit grey image. Returns uint8, `factor` times as large for super-resolution.

    Args:
        model: The restoring model.
        image_HW: The observed image.
        missing_HW: True where data are missing.

    Raises:
        DataError: The image is too small or too large.
    """
    rows, columns = image_HW.shape
    factor = model.degradation.factor if model.degradation.kind == "super-resolution" else 1
    if min(rows, columns) < MULTIPLE_PX or max(rows, columns) * factor > LARGEST_SIDE_PX:
        raise DataError(
            f"{rows} x {columns} pixels: a restorer accepts {MULTIPLE_PX} to {LARGEST_SIDE_PX // factor} pixels a side"
        )
    # padded by reflection to a multiple of 8, because the network halves its maps; the padding is cut off again
    margin = (0, -columns % MULTIPLE_PX, 0, -rows % MULTIPLE_PX)
    observed = F.pad(torch.from_numpy(image_HW.astype(np.float32))[None, None], margin, mode="reflect")
    known = torch.ones(1, 1, observed.shape[2] * factor, observed.shape[3] * factor)
    if missing_HW is not None:
        known = 1 - F.pad(torch.from_numpy(missing_HW.astype(np.float32))[None, None], margin, mode="reflect")
        observed = observed * known
    inputs = inputs_of_degraded(Degraded(observed_N1HW=observed, known_N1HW=known), model.degradation)
    restored = to_8_bit(model.network(inputs))[0, 0, : rows * factor, : columns * factor]
    return restored.to(torch.uint8).numpy()


@dataclass(frozen=True, kw_only=True)
class Enhanced:
    """The result of `enhance`: the files written, and (file, reason) of those that could not be restored."""

    written: tuple[Path, ...]
    refused: tuple[tuple[Path, str], ...]


def enhance(
    source: Path,
    model: RestoringModel,
    out: Path | None = None,
    mask: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Enhanced:
    """Restore one file, or every image of a folder, as NAME.restored.png or NAME.restored.dcm.

    Below `out` the folders of the source are kept. Each frame of a file with several becomes a file of its own.

    Args:
        source: A file or a folder.
        model: The restoring model.
        out: The folder for the results; by default each result is written beside its source.
        mask: For missing data: a picture that is white where data are missing.
        progress: Called as `progress(done, total)` after each file.

    Raises:
        DataError: `source` does not exist, contains no image, or is a single file that cannot be restored.
    """
    if not source.exists():
        raise DataError(f"{source}: no such file or folder")
    files = [source] if source.is_file() else list_files(source).files
    files = [path for path in files if MARK not in path.suffixes]
    missing_HW = _mask(mask, model, files)
    if out is not None:
        make_folder(out)
    targets = _targets(files, source.resolve(), out)
    written: list[Path] = []
    refused: list[tuple[Path, str]] = []
    series = new_series_uid()
    for number, path in enumerate(files, start=1):
        try:
            for target in _restored(path, targets[path], model, missing_HW, series):
                written.append(target)
        except (UnfitImage, DataError, OSError, ValueError) as error:
            refused.append((path, _reason(error, path)))
        if progress is not None:
            progress(number, len(files))
    if not written:
        raise DataError(refused[0][1] if len(refused) == 1 else f"{source}: holds no image that can be restored")
    return Enhanced(written=tuple(written), refused=tuple(refused))


def _mask(mask: Path | None, model: RestoringModel, files: list[Path]) -> np.ndarray | None:
    if model.degradation.kind != "missing":
        if mask is not None:
            raise DataError(
                f"{mask}: --mask needs a model for missing data; this one restores {model.degradation.words()}"
            )
        return None
    if mask is None or len(files) != 1:
        raise DataError(
            "the missing area is unknown: pass one file, and --mask with a picture that is white in that area"
        )
    pixels = read_picture(mask)
    return (pixels if pixels.ndim == 2 else luminance(pixels)) >= 128


def _targets(files: list[Path], source: Path, out: Path | None) -> dict[Path, Path]:
    """Return the name of each file's result, without its ending. No two files share one.

    The ending of a file is left out of the name, unless another file of the folder would then have the same name.
    """
    places = {path: path.parent if out is None else out / _folder_below(path, source) for path in files}
    short = {path: path.name if path.suffix.casefold() not in SHORTENED else path.stem for path in files}
    uses = Counter((places[path], short[path].casefold()) for path in files)
    return {
        path: places[path] / (path.name if uses[places[path], short[path].casefold()] > 1 else short[path])
        for path in files
    }


def _folder_below(path: Path, source: Path) -> Path:
    folder = path.resolve().parent
    return folder.relative_to(source) if folder.is_relative_to(source) else Path()


def _restored(
    path: Path, target: Path, model: RestoringModel, missing_HW: np.ndarray | None, series_uid: str
) -> Iterator[Path]:
    """Restore every frame of a file, and yield the files written."""
    kind = file_kind(path)
    if kind == DICOM:
        frames = frame_count(path)
        for index in range(frames):
            name = f"{target.name}.frame-{index + 1:0{len(str(frames))}d}" if frames > 1 else target.name
            yield _dicom_frame(
                path, index, frames, target.with_name(f"{name}{MARK}.dcm"), model, missing_HW, series_uid
            )
    elif kind == PICTURE:
        pixels = read_picture(path)
        grey = np.asarray(pixels if pixels.ndim == 2 else to_grey(luminance(pixels), (0.0, 255.0)))
        written = target.with_name(f"{target.name}{MARK}.png")
        make_folder(written.parent)
        write_png(written, _restored_grey(path, grey, model, missing_HW), {**model.notes, "source": path.name})
        yield written
    else:
        raise DataError(f"{path}: is neither a picture (PNG, JPEG) nor a DICOM file")


def _dicom_frame(
    path: Path,
    index: int,
    frames: int,
    target: Path,
    model: RestoringModel,
    missing_HW: np.ndarray | None,
    series_uid: str,
) -> Path:
    frame = read_frame(path, index)
    if frame.values.ndim != 2:
        raise DataError(f"{path}: is in colour; only grey images can be restored")
    grey = to_grey(frame.values, model.window_hu if frame.hu else (0.0, 255.0))
    restored = _restored_grey(path, grey, model, missing_HW)
    notes = {**model.notes, "window_hu": json.dumps(model.window_hu)}
    make_folder(target.parent)
    scale = restored.shape[0] / grey.shape[0]
    write_derived_dicom(target, restored, path, notes, series_uid, scale, index + 1 if frames > 1 else None)
    return target


def _restored_grey(path: Path, grey_HW: np.ndarray, model: RestoringModel, missing_HW: np.ndarray | None) -> np.ndarray:
    if missing_HW is not None and missing_HW.shape != grey_HW.shape:
        raise DataError(f"{path}: its size differs from the size of the mask")
    return restore(model, grey_HW, missing_HW)


def _reason(error: Exception, path: Path) -> str:
    """Return one line that quotes no tag and no value."""
    if isinstance(error, UnfitImage):
        known = REASONS.get(error.code)
        return f"{path}: {known.title if known else error.code}"
    if isinstance(error, DataError):
        return str(error)
    if isinstance(error, OSError) and error.errno is not None:
        return f"{path}: cannot be read: {error.strerror}; check the disk and the permissions"
    return f"{path}: cannot be read as an image; it is damaged, or cut short"
