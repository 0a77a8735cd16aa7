"""Phantom hospitals for a study: generated files of the source that the study reads, made once."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from wardround.sources.registry import source_name
from wardround.study.load import Study

Progress = Callable[[int, int], None]
Writer = Callable[[Path, int, int, int, Progress | None], None]  # folder, sites, patients, seed, progress


@dataclass(frozen=True, kw_only=True)
class PhantomKind:
    """The phantoms of a source: what people call them, the start of their folder's name, and what writes them."""

    says: str
    folder: str
    write: Writer


def _write_images(folder: Path, sites: int, patients: int, seed: int, progress: Progress | None) -> None:
    from wardround_simulation.phantoms.dicom import write_phantom_hospitals

    write_phantom_hospitals(folder, sites, patients, seed, progress)


def _write_records(folder: Path, sites: int, patients: int, seed: int, progress: Progress | None) -> None:
    from wardround_simulation.stays.hospitals import write_simulated_hospitals

    write_simulated_hospitals(folder, sites, patients, seed, progress)


KINDS = {  # by the name of the source
    "images": PhantomKind(says="phantom hospitals as DICOM files", folder="phantom-hospitals", write=_write_images),
    "records": PhantomKind(says="hospitals with simulated stays", folder="simulated-hospitals", write=_write_records),
}


def phantom_kind(study: Study) -> PhantomKind:
    """Return the phantoms that a study can be trained on."""
    return KINDS[source_name(study)]


def phantom_folder(study: Study, beside: Path, sites: int, patients: int) -> Path:
    """Return the folder of a study's phantom hospitals, beside the folder of its run."""
    return beside.parent / f"{phantom_kind(study).folder}-{sites}x{patients}"


def make_once(study: Study, folder: Path, sites: int, patients: int, seed: int, progress: Progress) -> None:
    """Write phantom hospitals to `folder` atomically: write them to a folder beside it, and rename that.

    Removes the partial folders that killed processes left behind.
    """
    for left in folder.parent.glob(f"{folder.name}.*.partial"):
        process = left.name.split(".")[-2]
        if process.isdigit() and not Path(f"/proc/{process}").exists():
            shutil.rmtree(left, ignore_errors=True)
    making = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
    phantom_kind(study).write(making, sites, patients, seed, progress)
    making.rename(folder)
