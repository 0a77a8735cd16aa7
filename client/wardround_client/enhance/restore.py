"""Restores images at a hospital with a released model: pictures and DICOM files, with the results beside them.

Nothing here trains, no data leave the hospital, and the ledger is not touched. Source files are only read. Shapes: H
rows, W columns.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping
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
from wardround.storage.disk_errors import cause, is_of_the_disk, require_writable, unwritable
from wardround.storage.folders import make_folder
from wardround.storage.text_file import path_text
from wardround.tasks.reconstruction.degradations import Degradation, Degraded, degradation_of
from wardround.tasks.reconstruction.image_quality import to_8_bit
from wardround.tasks.reconstruction.restorer import Restorer, inputs_of_degraded
from wardround.tasks.reconstruction.study import ReconstructionSection
from wardround_client.enhance.files import (
    NOT_FOR_DIAGNOSIS,
    UnwritableError,
    new_series_uid,
    write_derived_dicom,
    write_png,
)
from wardround_client.sources.images.decoding.crop import luminance, to_grey
from wardround_client.sources.images.decoding.dicom_pixels import frame_count, read_frame
from wardround_client.sources.images.decoding.pictures import read_picture, scan_picture
from wardround_client.sources.images.folder.files import DICOM, PICTURE, RESTORED, file_kind, list_files
from wardround_client.sources.images.quality.reasons import REASONS
from wardround_client.sources.images.stages import UnfitImage

SHORTENED = (".dcm", ".png", ".jpg", ".jpeg", ".jp2", ".tif", ".tiff", ".bmp", ".gif", ".webp")  # left out of a name
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

    Every frame of a DICOM file is restored to a file of its own, NAME.frame-K.restored.dcm. Where two files of a folder
    would have the same result, such as a.png and a.jpg, NAME is the whole file name. Below `out`, the results are in
    the subfolders of their sources.

    Args:
        source: A file or a folder.
        model: The restoring model.
        out: The folder for the results; by default each result is written beside its source.
        mask: For missing data: a picture that is white where data are missing.
        progress: Called as `progress(done, total)` after each file.

    Raises:
        DataError: `source` does not exist, contains no image, or is a single file that cannot be restored.
        UnwritableError: A result cannot be written: the disk is full, read-only or not permitted.
    """
    if not source.exists():
        raise DataError(f"{path_text(source)}: no such file or folder")
    files = [source] if source.is_file() else list_files(source).files
    files = [path for path in files if RESTORED not in path.suffixes]
    missing_HW = _mask(mask, model, files)
    if out is not None:
        if source.is_dir() and out.resolve().is_relative_to(source.resolve()):
            raise DataError(
                f"{path_text(out)}: lies inside {path_text(source)}, so a later ingest would take results for data; "
                "choose an --out outside"
            )
        require_writable(out)
    root = source.resolve() if source.is_dir() else source.parent
    names = _names_of_results(files)
    written, refused, series = [], [], new_series_uid()
    for number, path in enumerate(files, start=1):
        folder = path.parent if out is None else out / path.parent.relative_to(root)
        for frame in _frames(path):
            try:
                image = _read(path, frame, model, missing_HW)
            except UnfitImage as error:
                refused.append((path, _reason(error, path, frame)))
                continue
            except Exception as error:  # a decoder's own errors are of any type; a header may announce any frames
                after = "; the frames after it were not read" if frame else ""
                refused.append((path, _reason(error, path, frame) + after))
                break
            try:
                written.append(_write(folder, names[path], path, image, model, missing_HW, series))
            except UnwritableError as error:  # the next result could not be written either
                raise UnwritableError(f"{error}; {len(written)} images were restored before") from None
            except DataError as error:
                refused.append((path, str(error)))
        if progress is not None:
            progress(number, len(files))
    if not written:
        raise DataError(refused[0][1] if len(refused) == 1 else f"{path_text(source)}: {_nothing_restored(refused)}")
    return Enhanced(written=tuple(written), refused=tuple(refused))


def _nothing_restored(refused: list[tuple[Path, str]]) -> str:
    return f"holds no image that can be restored{f'; the first: {refused[0][1]}' if refused else ''}"


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


@dataclass(frozen=True, kw_only=True)
class _Frame:
    """One frame of a file with `of` frames, counted from 1."""

    number: int
    of: int

    def __str__(self) -> str:
        return f"frame-{self.number:0{len(str(self.of))}}"


@dataclass(frozen=True, kw_only=True)
class _Source:
    """A grey image that was read. `frame` is None in a file with one frame."""

    grey_HW: np.ndarray
    dicom: bool
    frame: _Frame | None


def _names_of_results(files: list[Path]) -> dict[Path, str]:
    """Return the name of each file's result, without its ending; no two files of a folder share one.

    The ending of a file is left out of the name, unless another file of the folder would then have the same name.
    """
    short = {path: path.stem if path.suffix.casefold() in SHORTENED else path.name for path in files}
    uses = Counter((path.parent, name.casefold()) for path, name in short.items())
    return {path: name if uses[path.parent, name.casefold()] == 1 else path.name for path, name in short.items()}


def _frames(path: Path) -> list[_Frame | None]:
    """Return the frames of a DICOM file, or [None] for a file with one frame or one that is not DICOM."""
    try:
        count = frame_count(path) if file_kind(path) == DICOM else 1
    except Exception:  # damaged: reading its first frame gives the reason
        count = 1
    return [None] if count == 1 else [_Frame(number=number, of=count) for number in range(1, count + 1)]


def _read(path: Path, frame: _Frame | None, model: RestoringModel, missing_HW: np.ndarray | None) -> _Source:
    """Read one image. Raises `DataError` or `UnfitImage` if it does not fit, and a decoder's own error."""
    kind = file_kind(path)
    if kind == DICOM:
        pixels = read_frame(path, 0 if frame is None else frame.number - 1)
        if pixels.values.ndim != 2:
            raise DataError(f"{path_text(path)}: is in colour; only grey images can be restored")
        grey = to_grey(pixels.values, model.window_hu if pixels.hu else (0.0, 255.0))
    elif kind == PICTURE:
        scan_picture(path, "")  # refuses pictures that are too large, and files with several
        picture = read_picture(path)
        grey = np.asarray(picture if picture.ndim == 2 else to_grey(luminance(picture), (0.0, 255.0)))
    else:
        with path.open("rb"):  # a file that cannot be opened has a better reason
            raise DataError(f"{path_text(path)}: is neither a picture (PNG, JPEG) nor a DICOM file")
    if missing_HW is not None and missing_HW.shape != grey.shape:
        raise DataError(f"{path_text(path)}: its size differs from the size of the mask")
    return _Source(grey_HW=grey, dicom=kind == DICOM, frame=frame)


def _write(
    folder: Path,
    name: str,
    path: Path,
    image: _Source,
    model: RestoringModel,
    missing_HW: np.ndarray | None,
    series_uid: str,
) -> Path:
    """Restore an image and write the result. Raises `DataError` if it exists, and `UsageError` if it is unwritable."""
    frame = image.frame
    target = folder / f"{name if frame is None else f'{name}.{frame}'}{RESTORED}{'.dcm' if image.dicom else '.png'}"
    restored = restore(model, image.grey_HW, missing_HW)
    try:
        make_folder(folder)
    except OSError as error:
        raise UnwritableError(str(unwritable(folder, error))) from None
    if image.dicom:
        scale = restored.shape[0] / image.grey_HW.shape[0]
        notes = {**model.notes, "window_hu": json.dumps(model.window_hu)}
        write_derived_dicom(target, restored, path, notes, series_uid, scale, None if frame is None else frame.number)
    else:
        write_png(target, restored, {**model.notes, "source": path_text(path.name)})
    return target


def _reason(error: Exception, path: Path, frame: _Frame | None) -> str:
    """Return one line that quotes no tag and no value."""
    place = path_text(path) if frame is None else f"{path_text(path)}, frame {frame.number}"
    if isinstance(error, UnfitImage):
        known = REASONS.get(error.code)
        return f"{place}: {known.title if known else error.code}"
    if isinstance(error, DataError):
        return str(error)
    if isinstance(error, OSError) and is_of_the_disk(error):
        return f"{place}: cannot be read: {cause(error)}"
    if isinstance(error, MemoryError):
        return f"{place}: cannot be read: there is not enough memory"
    return f"{place}: cannot be read as an image; it is damaged, or cut short"
