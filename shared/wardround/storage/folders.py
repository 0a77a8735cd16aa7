"""Folders that belong to one program alone: made for their owner only, never taken over from something else."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

from wardround.errors import UsageError
from wardround.storage.atomic import OWNERS_FOLDER, unwritable


def make_folder(folder: Path) -> None:
    """Make a folder and those missing above it, each its owner's alone; `mkdir` gives its mode to the last one only."""
    for path in (*(path for path in reversed(folder.parents) if not path.exists()), folder):
        path.mkdir(mode=OWNERS_FOLDER, exist_ok=True)


def own_folder(folder: Path, mark: str) -> None:
    """Make the folder of a site or a server (0700), or take one that is empty or has the file `mark` already.

    Raises `UsageError` where it holds other things: nobody wants their home folder to become a hospital.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=OWNERS_FOLDER)
        if (folder / mark).exists():
            return
        if any(not path.name.startswith(f".{mark}") for path in folder.iterdir()):
            raise UsageError(f"{folder}: holds other things; choose a new or an empty folder")
        folder.chmod(OWNERS_FOLDER)
    except OSError as error:
        raise unwritable(folder, error) from None


def too_open(*paths: Path) -> Iterator[Path]:
    """Those of the paths that are there and that others than their owner may read or write."""
    for path in paths:
        if path.exists() and stat.S_IMODE(path.stat().st_mode) & 0o077:
            yield path
