"""Lists the image files of a folder in a fixed order, without following links out of it, and detects a file's kind."""

from __future__ import annotations

import os
from pathlib import Path

from wardround.errors import DataError

PICTURE, DICOM, OTHER = "picture", "dicom", "other"
IGNORED_NAMES = frozenset({"dicomdir", "thumbs.db", "desktop.ini", "license", "readme", "copying"})
IGNORED_SUFFIXES = frozenset(
    {".csv", ".tsv", ".txt", ".md", ".json", ".jsonl", ".xml", ".html", ".htm", ".pdf", ".docx", ".xlsx"}
    | {".toml", ".yaml", ".yml", ".log", ".py", ".npy", ".npz"}
)
TABLES = frozenset({"manifest.csv", "labels.csv"})
PICTURE_STARTS = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM", b"II*\0", b"MM\0*", b"GIF8")


def list_files(folder: Path, *, deep: bool = True) -> tuple[list[Path], int]:
    """Return every file that may be an image, sorted by path, and the number of files skipped because of their name.

    Hidden files and text files are skipped.

    Raises:
        DataError: A folder cannot be read, or a link leads out of the folder: the file behind such a link would be read
            although no one put it there.
    """
    root = folder.resolve()
    files: list[Path] = []
    ignored = 0
    for place, folders, names in os.walk(root, onerror=_refuse_unreadable):
        folders[:] = sorted(name for name in folders if not _is_hidden(name)) if deep else []
        _refuse_links_out(root, [Path(place, name) for name in (*folders, *names)])
        for name in sorted(names):
            path = Path(place, name)
            if name in TABLES:
                continue
            if _is_hidden(name) or name.casefold() in IGNORED_NAMES or path.suffix.casefold() in IGNORED_SUFFIXES:
                ignored += 1
            elif path.is_file():
                files.append(path)
    return sorted(files, key=lambda path: path.relative_to(root).as_posix()), ignored


def subfolders(folder: Path) -> list[Path]:
    """Return the immediate subfolders that contain a file at any depth, sorted by name; hidden ones are skipped."""
    inner = sorted(path for path in folder.iterdir() if path.is_dir() and not _is_hidden(path.name))
    _refuse_links_out(folder.resolve(), inner)
    return [path for path in inner if any(names for _, _, names in os.walk(path))]


def file_kind(path: Path) -> str:
    """Return `DICOM`, `PICTURE` or `OTHER`, by the file's first bytes (PS3.10 7.1).

    A DICOM file without its preamble is `OTHER`.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(132)
    except OSError:
        return OTHER
    if start[128:132] == b"DICM":
        return DICOM
    if start.startswith(PICTURE_STARTS) or (start[:4] == b"RIFF" and start[8:12] == b"WEBP"):
        return PICTURE
    return OTHER


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "__MACOSX"))


def _refuse_links_out(root: Path, paths: list[Path]) -> None:
    for path in paths:
        if path.is_symlink() and not path.resolve().is_relative_to(root):
            raise DataError(f"{root}: holds a link that leads out of it; put the files themselves there")


def _refuse_unreadable(error: OSError) -> None:
    raise DataError(f"a folder inside the data folder cannot be read: {error.strerror}; check its permissions")
