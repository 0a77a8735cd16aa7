"""Synthetic images as files, each saying what it is: a PNG grid, a folder with manifest, or DICOM secondary captures.

Every file names the model, the study, epsilon and delta; a DICOM file is marked as derived and synthetic where a reader
looks for it (PS3.3: Image Type, C.7.6.1.1.2; Conversion Type SYN, C.8.6.1; Synthetic Data, C.12.1; Derivation
Description, C.7.6.1.1.3). Nothing is overwritten, and what is written is whole or not there.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, PngImagePlugin
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid
from torch import nn

from wardround.errors import UsageError
from wardround.networks.build import build_model
from wardround.storage.atomic import settle_new
from wardround.storage.checkpoint import load_checkpoint
from wardround.storage.disk_errors import unwritable
from wardround.study.load import Study, study_from_json
from wardround.tasks.assessment import SyntheticImages
from wardround.tasks.registry import commands_of
from wardround.text import epsilon_text
from wardround_server.runs.paths import MODEL_FILE, STUDY_FILE

MANIFEST = "manifest.csv"
COLUMNS = ("file", "patient_id", "label", "study", "study_sha256", "epsilon", "delta", "seed")
GRID_COLUMNS = 8
GAP_PX = 2
PATIENT = "SYNTHETIC"


@dataclass(frozen=True, kw_only=True, eq=False)
class ReleasedModel:
    """A finished run's model, ready to make images, and what it promises to those who trained it."""

    network: nn.Module
    study: Study
    study_sha256: str
    epsilon: str
    delta: float

    @property
    def says(self) -> str:
        """One sentence for a person."""
        if self.epsilon == "inf":
            return "Their model was trained WITHOUT PRIVACY: its images may show patients."
        return (
            f"Their model was trained with ε = {epsilon_text(self.epsilon)} (δ = {self.delta:g}) per training patient."
        )

    def label_number(self, label: str | None) -> int | None:
        """The index of a label. Raises `UsageError` for one that the study does not have."""
        if label is None:
            return None
        if label not in self.study.data.labels:
            raise UsageError(
                f"--label {label}: is not a label of the study; choose from {', '.join(self.study.data.labels)}"
            )
        return self.study.data.labels.index(label)

    def origin(self, seed: int) -> dict[str, Any]:
        """What every file says of itself."""
        return {
            "synthetic": "yes: made by a model, of no patient; not for diagnosis",
            "model": self.study.model.name,
            "study": self.study.study.name,
            "study_sha256": self.study_sha256,
            "epsilon": self.epsilon,
            "delta": self.delta,
            "unit": "patient",
            "seed": seed,
        }


def open_model(folder: Path) -> ReleasedModel:
    """The model of a finished run. Raises `UsageError` where there is none, or it makes no images."""
    path, study_path = folder / MODEL_FILE, folder / STUDY_FILE
    if not path.is_file() or not study_path.is_file():
        raise UsageError(f"{folder}: contains no finished run; give the --out folder of a finished run")
    study = study_from_json(study_path.read_text(encoding="utf-8"), str(study_path))
    if not commands_of(study.study.task).generate:
        raise UsageError(
            f"{folder}: is a run of the task {study.study.task}, which generates no images; give a synthesis run"
        )
    tensors, manifest = load_checkpoint(path)
    if manifest.get("study_sha256") != study.sha256():
        raise UsageError(f"{path}: is not the model of the study in the same folder")
    network = build_model(study.model, study.data, study.study.seed).eval()
    wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    if {name: tensor.shape for name, tensor in tensors.items()} != wanted:
        raise UsageError(f"{path}: does not fit the network of its study; it was written by a different version")
    network.load_state_dict({name: torch.from_numpy(tensor.copy()) for name, tensor in tensors.items()})
    privacy = manifest["privacy"]
    return ReleasedModel(
        network=network,
        study=study,
        study_sha256=study.sha256(),
        epsilon=str(privacy["epsilon"]),
        delta=float(privacy["delta"]),
    )


def write_synthetic(target: Path, format_: str, made: SyntheticImages, model: ReleasedModel, seed: int) -> int:
    """Write the images to `target`, which is not there yet; returns how many files. Raises `UsageError` where it is."""
    # Not `write_file` or `write_folder`, which hold all of it in memory; and what is there must not be replaced.
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        if format_ == "grid":
            _grid(made.images_NCHW).save(partial, format="PNG", pnginfo=_png_text(model.origin(seed)))
            settle_new(partial, target)
            return 1
        partial.mkdir()
        count = _write_folder(partial, format_, made, model, seed)
        target.mkdir()  # fails where it exists; an empty folder may be replaced by a rename
        os.replace(partial, target)
        return count
    except FileExistsError:
        raise UsageError(f"{target}: exists already; choose another --out") from None
    except OSError as error:
        raise unwritable(target, error) from None
    finally:
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def _write_folder(folder: Path, format_: str, made: SyntheticImages, model: ReleasedModel, seed: int) -> int:
    origin = model.origin(seed)
    series_uid, study_uid = generate_uid(), generate_uid()
    rows = []
    for number, (image_CHW, label) in enumerate(zip(made.images_NCHW, made.labels_N.tolist(), strict=True), start=1):
        patient, name = f"{PATIENT}-{number:05d}", model.study.data.labels[label]
        file = f"synthetic-{number:05d}.{'png' if format_ == 'folder' else 'dcm'}"
        if format_ == "folder":
            _picture(image_CHW).save(folder / file, pnginfo=_png_text({**origin, "label": name}))
        else:
            header = _secondary_capture(image_CHW, patient, name, number, origin, (study_uid, series_uid))
            header.save_as(folder / file, enforce_file_format=True)
        rows.append([file, patient, name, *(origin[column] for column in COLUMNS[3:])])
    with open(folder / MANIFEST, "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(COLUMNS)
        writer.writerows(rows)
    return len(rows) + 1


def _secondary_capture(
    image_CHW: np.ndarray, patient: str, label: str, number: int, origin: dict[str, Any], uids: tuple[str, str]
) -> FileDataset:
    """One image as a Secondary Capture (PS3.3 A.8.1) that nobody can take for an examination."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    image.SpecificCharacterSet = "ISO_IR 192"
    image.SOPClassUID, image.SOPInstanceUID = SecondaryCaptureImageStorage, meta.MediaStorageSOPInstanceUID
    image.ImageType = ["DERIVED", "SECONDARY", "OTHER", "SYNTHETIC"]
    image.ConversionType = "SYN"
    image.SyntheticData = "YES"
    image.BurnedInAnnotation = "NO"
    image.DerivationDescription = (
        f"Synthetic image of no patient, label {label}. Not for diagnosis. Made by Wardround's {origin['model']} of "
        f"study {origin['study']} ({origin['study_sha256']}); epsilon {origin['epsilon']}, delta {origin['delta']:g} "
        f"for each patient who trained it; seed {origin['seed']}."
    )
    image.ImageComments = "SYNTHETIC IMAGE OF NO PATIENT. NOT FOR DIAGNOSIS."
    image.Modality = "OT"
    image.Manufacturer = "Wardround"
    image.PatientName, image.PatientID = f"{PATIENT}^{number:05d}", patient
    image.PatientBirthDate = image.PatientSex = image.StudyDate = image.StudyTime = ""
    image.AccessionNumber = image.ReferringPhysicianName = image.StudyID = ""
    image.StudyInstanceUID, image.SeriesInstanceUID = uids
    image.SeriesDescription = "SYNTHETIC, of no patient"
    image.SeriesNumber, image.InstanceNumber = "1", str(number)
    image.PatientOrientation = ""
    channels, image.Rows, image.Columns = image_CHW.shape
    image.SamplesPerPixel = 3 if channels == 3 else 1
    image.PhotometricInterpretation = "RGB" if channels == 3 else "MONOCHROME2"
    if channels == 3:
        image.PlanarConfiguration = 0
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 8, 8, 7, 0
    image.PixelData = np.array(_picture(image_CHW)).tobytes()
    return image


def _picture(image_CHW: np.ndarray) -> Image.Image:
    pixels = image_CHW.transpose(1, 2, 0) if len(image_CHW) == 3 else image_CHW[len(image_CHW) // 2]
    return Image.fromarray(np.ascontiguousarray(pixels, dtype=np.uint8))


def _grid(images_NCHW: np.ndarray) -> Image.Image:
    """Images side by side, `GRID_COLUMNS` to a row."""
    tiles = [_picture(image_CHW) for image_CHW in images_NCHW]
    columns = min(GRID_COLUMNS, len(tiles))
    width, height = tiles[0].size
    size = (columns * (width + GAP_PX) - GAP_PX, -(-len(tiles) // columns) * (height + GAP_PX) - GAP_PX)
    sheet = Image.new(tiles[0].mode, size)
    for number, tile in enumerate(tiles):
        sheet.paste(tile, (number % columns * (width + GAP_PX), number // columns * (height + GAP_PX)))
    return sheet


def _png_text(origin: dict[str, Any]) -> PngImagePlugin.PngInfo:
    text = PngImagePlugin.PngInfo()
    text.add_text("Wardround", json.dumps(origin))
    return text
