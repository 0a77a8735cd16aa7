"""Folders that belong to one program only: accessible to their owner, and never shared with other content."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

from wardround.errors import UsageError
from wardround.storage.atomic import OWNERS_FOLDER
from wardround.storage.disk_errors import unwritable


def make_folder(folder: Path) -> None:
    """Create a folder and its missing parents, each with mode 0700; `mkdir` would set the mode of the last one only."""
    for path in (*(path for path in reversed(folder.parents) if not path.exists()), folder):
        path.mkdir(mode=OWNERS_FOLDER, exist_ok=True)


def own_folder(folder: Path, mark: str) -> None:
    """Create the folder of a site or a server (0700), or accept one that is empty or contains the file `mark`.

    Raises `UsageError` if the folder has other content, so that a home folder, for example, is not used by mistake.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=OWNERS_FOLDER)
        if (folder / mark).exists():
            return
        if any(not path.name.startswith(f".{mark}") for path in folder.iterdir()):
            raise UsageError(f"{folder}: contains other files; choose a new or an empty folder")
        folder.chmod(OWNERS_FOLDER)
    except OSError as error:
        raise unwritable(folder, error) from None


def too_open(*paths: Path) -> Iterator[Path]:
    """Yield the existing paths that grant any permission to users other than their owner."""
    for path in paths:
        if path.exists() and stat.S_IMODE(path.stat().st_mode) & 0o077:
            yield path
