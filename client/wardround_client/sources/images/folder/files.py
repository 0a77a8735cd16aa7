"""Lists the image files of a folder in a fixed order, without following links out of it, and detects a file's kind."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from wardround.errors import DataError

PICTURE, DICOM, OTHER = "picture", "dicom", "other"
IGNORED_NAMES = frozenset({"dicomdir", "thumbs.db", "desktop.ini", "license", "readme", "copying"})
IGNORED_SUFFIXES = frozenset(
    {".csv", ".tsv", ".txt", ".md", ".json", ".jsonl", ".xml", ".html", ".htm", ".pdf", ".docx", ".xlsx"}
    | {".toml", ".yaml", ".yml", ".log", ".py", ".npy", ".npz"}
)
# What network storage and systems add to a folder: thumbnails, recycle bins, snapshots. Compared without case.
STORAGE_FOLDERS = frozenset(
    {"@eadir", "#recycle", "@recycle", "@recently-snapshot", "#snapshot", "@sharebin", "@tmp", "@__thumb", "~snapshot"}
    | {"$recycle.bin", "recycler", "recycled", "system volume information", "found.000", "lost+found", "__macosx"}
    | {"#recently-snapshot", "@snapshot", "@sharesnap", "aquota.group", "windowsimagebackup"}
)
MANIFEST, LABELS = "manifest.csv", "labels.csv"
RESTORED = ".restored"  # in the name of what `enhance` computed, which is no patient's image
PICTURE_STARTS = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM", b"II*\0", b"MM\0*", b"GIF8") + (
    b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51"  # JPEG 2000, with and without boxes
)  # fmt: skip
# Formats that are not read, by their first bytes, and the reason code that names them.
FOREIGN_STARTS = (
    (b"PK\3\4", "archive"), (b"7z\xbc\xaf\x27\x1c", "archive"), (b"Rar!", "archive"), (b"BZh", "archive"),
    (b"\xfd7zXZ", "archive"), (b"NRRD", "volume"), (b"ObjectType", "volume"), (b"NDims", "volume"),
    (b"\x5c\1\0\0", "volume"), (b"\0\0\1\x5c", "volume"), (b"\x89HDF", "volume"),
)  # fmt: skip
VOLUME_SUFFIXES = (".nii", ".nii.gz", ".mhd", ".mha", ".nrrd", ".nhdr", ".img.gz", ".mgz")
PHOTO_BRANDS = (b"heic", b"heix", b"mif1", b"msf1", b"hevc", b"avif")
DATASET_GROUPS = (b"\x02\0", b"\x08\0")  # first group of a DICOM file without preamble, little endian
VALUE_REPRESENTATIONS = frozenset({b"UL", b"OB", b"UI", b"SH", b"AE", b"CS", b"DA", b"TM", b"LO", b"DT"})


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The files of a folder that may be images, sorted by path, and what was passed over."""

    files: list[Path] = field(repr=False)
    skipped: int = 0  # texts, tables, hidden files, and what network storage and `enhance` add
    broken_links: int = 0


def list_files(folder: Path, *, deep: bool = True) -> Listing:
    """Return every file that may be an image, and count the files skipped because of their name or folder.

    Raises:
        DataError: A folder cannot be read, or a link leads out of the folder: the file behind such a link would be read
            although no one put it there.
    """
    root = folder.resolve()
    files: list[Path] = []
    skipped = broken = 0
    for place, folders, names in os.walk(root, onerror=_refuse_unreadable):
        passed = [name for name in folders if is_passed_over(name)]
        if deep:
            skipped += sum(_count_files(Path(place, name)) for name in passed if not Path(place, name).is_symlink())
        folders[:] = sorted(set(folders) - set(passed)) if deep else []
        _refuse_links_out(root, [Path(place, name) for name in (*folders, *names)])
        for name in sorted(names):
            path = Path(place, name)
            if name in (MANIFEST, LABELS):
                continue
            if is_passed_over(name) or name.casefold() in IGNORED_NAMES or path.suffix.casefold() in IGNORED_SUFFIXES:
                skipped += 1
            elif path.is_file():
                files.append(path)
            elif path.is_symlink():
                broken += 1
            else:
                skipped += 1  # a socket or a pipe
    files.sort(key=lambda path: path.relative_to(root).as_posix())
    return Listing(files=files, skipped=skipped, broken_links=broken)


def subfolders(folder: Path) -> list[Path]:
    """Return the immediate subfolders that contain a file at any depth, sorted by name; hidden ones are skipped."""
    inner = sorted(path for path in folder.iterdir() if path.is_dir() and not is_passed_over(path.name))
    _refuse_links_out(folder.resolve(), inner)
    return [path for path in inner if any(names for _, _, names in os.walk(path))]


def is_passed_over(name: str) -> bool:
    """Whether a file or folder is hidden, or was added by network storage, by the system or by `enhance`."""
    return (
        name.startswith((".", "__MACOSX"))
        or name.casefold() in STORAGE_FOLDERS
        or name.endswith((f"{RESTORED}.png", f"{RESTORED}.dcm"))
    )


def file_kind(path: Path) -> str:
    """Return `DICOM`, `PICTURE` or `OTHER`, by the file's first bytes (PS3.10 7.1).

    Raises:
        OSError: The file cannot be read at the moment.
    """
    with open(path, "rb") as file:
        start = file.read(132)
    if start[128:132] == b"DICM" or _begins_a_dataset(start):
        return DICOM
    if start.startswith(PICTURE_STARTS) or (start[:4] == b"RIFF" and start[8:12] == b"WEBP"):
        return PICTURE
    return OTHER


def foreign_format(path: Path) -> str | None:
    """Return the reason code that names a format which is not read ("archive", "volume", "phone_photo"), or None."""
    name = path.name.casefold()
    with open(path, "rb") as file:
        start = file.read(16)
    if name.endswith(VOLUME_SUFFIXES):
        return "volume"
    if start[4:8] == b"ftyp" and start[8:12] in PHOTO_BRANDS:
        return "phone_photo"
    if start.startswith(b"\x1f\x8b") or name.endswith((".tar", ".tgz")):
        return "archive"
    return next((code for begin, code in FOREIGN_STARTS if start.startswith(begin)), None)


def _begins_a_dataset(start: bytes) -> bool:
    """Whether a file begins with an element of group 0002 or 0008, as DICOM without a preamble does."""
    if len(start) < 12 or start[:2] not in DATASET_GROUPS or start[3] != 0:
        return False
    length = int.from_bytes(start[4:8], "little")
    return start[4:6] in VALUE_REPRESENTATIONS or (length % 2 == 0 and length <= 1024)


def _count_files(folder: Path) -> int:
    return sum(len(names) for _, _, names in os.walk(folder))


def _refuse_links_out(root: Path, paths: list[Path]) -> None:
    for path in paths:
        if path.is_symlink() and not path.resolve().is_relative_to(root):
            raise DataError(f"{root}: holds a link that leads out of it; put the files themselves there")


def _refuse_unreadable(error: OSError) -> None:
    raise DataError(f"a folder inside the data folder cannot be read: {error.strerror}; check its permissions")
