"""Who a file belongs to, found out in a worker process: the parent reads no patient's file."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from wardround.errors import DataError
from wardround_client.sources.images.decoding.workers import Lost, WorkerPool
from wardround_client.sources.images.folder.files import PICTURE, file_kind

FILES_WORTH_A_WORKER = 256


def patients_of_files(root: Path, paths: Sequence[Path]) -> list[str | None]:
    """Return the PatientID of each DICOM file, and for a picture "picture " and the SHA-256 of its content.

    None for a file that names no patient or cannot be read as an image; ingest reports it.

    Args:
        root: The data folder, for messages.
        paths: The files.

    Raises:
        DataError: A file cannot be read from its disk at the moment.
    """
    if not paths:
        return []
    found: list[str | None] = []
    with WorkerPool(min(os.cpu_count() or 1, 1 + len(paths) // FILES_WORTH_A_WORKER)) as pool:
        for answer in pool.map(patient_of_file, list(paths)):
            if isinstance(answer, Lost):
                answer = None
            elif answer is not None and answer.startswith("error "):
                raise DataError(f"{root}: a file in it cannot be read: {answer.removeprefix('error ')}; check the disk")
            found.append(None if answer is None else answer.removeprefix("patient "))
    return found


def patient_of_file(path: Path) -> str | None:
    """Return "patient " and the ID, "error " and the system's reason, or None. Runs in a worker."""
    try:
        if file_kind(path) == PICTURE:
            with open(path, "rb") as file:
                return f"patient picture {hashlib.file_digest(file, 'sha256').hexdigest()}"
        from wardround_client.sources.images.decoding.dicom_header import read_patient

        patient_id = read_patient(path)[0]
        return None if patient_id is None else f"patient {patient_id}"
    except OSError as error:
        return f"error {error.strerror}"
    except MemoryError:
        return None
