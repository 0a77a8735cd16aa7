"""Folders that are named as the study's labels, and the parts of a split such as train and test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from wardround.errors import DataError
from wardround.sources.images.study import ImageData
from wardround.storage.table import same_text
from wardround_client.sources.images.folder.files import LABELS, MANIFEST, list_files, subfolders

SPLITS = frozenset({"train", "training", "test", "testing", "val", "valid", "validation"})
ONE_POOL = "the folders {names} are taken as one pool, because the study makes its own split by patient"
A_COPY = "a copy of this folder inside itself was left out ({count} files)"


@dataclass(frozen=True, kw_only=True)
class ClassFolders:
    """The folders of a pool: those named as a label with its index, and others, whose files are left out."""

    labelled: tuple[tuple[Path, int], ...]
    others: tuple[Path, ...]
    notes: tuple[str, ...] = ()
    copied: int = 0  # files of a copy of the folder inside itself


def label_index(text: str, data: ImageData) -> int | None:
    """Return the index of a label, -1 for an empty text, None for a label that is not in the study.

    Case, outer spaces and the Unicode form of a letter do not matter, unless the study's labels differ only in them.
    """
    if text in data.labels:
        return data.labels.index(text)
    if not text.strip():
        return -1
    same = [index for index, label in enumerate(data.labels) if same_text(label) == same_text(text)]
    return same[0] if len(same) == 1 else None


def class_folders(root: Path, data: ImageData) -> ClassFolders | None:
    """Return the folders of labels in `root`, at its top or in the parts of a split; None if it has none.

    Labels are never taken from folders if a table gives them, or if only some of the names fit.

    Raises:
        DataError: Some folders are named as labels of the study, and it is unclear whether that is meant.
    """
    if any((root / table).is_file() for table in (MANIFEST, LABELS)):
        return None
    inside, copied = _without_copies(root, subfolders(root))
    notes = (A_COPY.format(count=copied),) if copied else ()
    if are_splits(inside):
        parts = [subfolders(part) for part in inside]
        names = " and ".join(part.name for part in inside)
        folders = [folder for part in parts for folder in part]
        notes = (*notes, ONE_POOL.format(names=names))
    else:
        folders = inside
    labelled = [(folder, index) for folder in folders if (index := label_index(folder.name, data)) is not None]
    if not labelled:
        return None
    others = [folder for folder in folders if label_index(folder.name, data) is None]
    missing = [label for index, label in enumerate(data.labels) if index not in {index for _, index in labelled}]
    if others and (missing or _are_numbers([folder.name for folder in (*others, labelled[0][0])])):
        raise DataError(
            f"{root}: some of its folders are named as labels of the study and {len(others)} are not"
            + (f" (no folder is named {missing[0]})" if missing else "")
            + "; add a manifest.csv or labels.csv that gives the labels, or use a folder that holds only the labels"
        )
    return ClassFolders(labelled=tuple(labelled), others=tuple(others), notes=notes, copied=copied)


def are_splits(folders: Sequence[Path]) -> bool:
    """Whether these folders are the parts of a split for machine learning, and not sites."""
    return len(folders) > 1 and all(folder.name.casefold() in SPLITS for folder in folders)


def _without_copies(root: Path, folders: Sequence[Path]) -> tuple[list[Path], int]:
    """Return the folders without a copy of their parent, as some archives contain, and the number of its files."""
    kept, copied = [], 0
    for folder in folders:
        beside = {other.name.casefold() for other in folders if other != folder}
        within = {inner.name.casefold() for inner in subfolders(folder)}
        if beside and beside <= within and _repeats(folder, root):
            copied += len(list_files(folder).files)
        else:
            kept.append(folder)
    return kept, copied


def _repeats(folder: Path, root: Path) -> bool:
    """Whether every image of a folder is at the same place in its parent too, as large."""
    listing = list_files(folder).files
    twins = [root / path.relative_to(folder.resolve()) for path in listing]
    return bool(listing) and all(
        twin.is_file() and twin.stat().st_size == path.stat().st_size for path, twin in zip(listing, twins, strict=True)
    )


def _are_numbers(names: Sequence[str]) -> bool:
    return all(name.isdigit() for name in names)
