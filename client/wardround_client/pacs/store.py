"""Results into a PACS: reports, pictures and maps of predictions, by C-STORE or STOW-RS, where the hospital allows it.

Only what this project made and marked as research is sent, to the one archive that the user names. An object keeps its
UID, so that storing it again changes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pydicom
from pydicom import Dataset
from pynetdicom.presentation import PresentationContext, build_context

from wardround.errors import PolicyRefusal, UsageError
from wardround.storage.text_file import path_text
from wardround_client.pacs.dimse import MOST_CONTEXTS, Activity, associated, send
from wardround_client.pacs.node import Node, PacsError

PAUSES_S = (0.0, 1.0, 5.0)  # before each attempt
LEAST_S, EACH_S = 600.0, 60.0  # of one call, and more of it for each object: a map of 50 MB takes 40 s at 10 Mbit/s
MARK = "not for diagnostic use"
RESULT_CLASSES = frozenset(
    {
        "1.2.840.10008.5.1.4.1.1.88.34",  # Comprehensive 3D SR
        "1.2.840.10008.5.1.4.1.1.7",  # Secondary Capture
        "1.2.840.10008.5.1.4.1.1.30",  # Parametric Map
    }
)
_TAGS = ["SOPClassUID", "SOPInstanceUID", "SeriesDescription"]


@dataclass(frozen=True, kw_only=True)
class Stored:
    """How storing ended: the files that are in the PACS, and the others. `reason` is why the last one failed."""

    stored: tuple[Path, ...] = field(repr=False)
    failed: tuple[Path, ...] = field(repr=False)
    reason: str = ""


def require_allowed(node: Node) -> None:
    """Raise `PolicyRefusal` unless `site.toml` allows results in this archive."""
    if not node.config.allow_store:
        raise PolicyRefusal(
            "pacs-store",
            f"{node.name}: site.toml does not allow results there; the hospital may set allow_store = true in "
            f"[pacs.{node.name}]",
        )


def store(node: Node, paths: Sequence[Path]) -> Stored:
    """Store results, each in up to three attempts. What is not stored after `LEAST_S` and `EACH_S` for each has failed.

    Raises:
        PolicyRefusal: `site.toml` does not allow it.
        UsageError: A file was not made by this program or is not marked as research; nothing was sent then.
    """
    require_allowed(node)
    for path in paths:
        _refuse_other(path)
    left, reason = list(paths), ""
    ends = time.monotonic() + LEAST_S + EACH_S * len(left)
    for pause_s in PAUSES_S:
        if not left or time.monotonic() > ends:
            break
        time.sleep(pause_s)
        try:
            by = _by_web if node.config.way == "web" else _by_dicom
            for path, why in by(node, tuple(left), ends):
                reason = why or reason
                left = [one for one in left if one != path or why]
        except PacsError as error:
            reason = str(error)
    return Stored(
        stored=tuple(one for one in paths if one not in left), failed=tuple(left), reason=reason if left else ""
    )


def _by_dicom(node: Node, paths: Sequence[Path], ends: float) -> Iterator[tuple[Path, str]]:
    with associated(node, _contexts(paths), Activity(ends)) as association:
        for path in paths:
            try:
                send(node, path, association)
            except PacsError as error:
                yield path, str(error)
                if not association.is_established:
                    return
            except ValueError:  # of pynetdicom, for a class that the PACS did not accept
                yield path, f"{node.name}: the PACS does not accept this kind of object; ask its administrator"
            else:
                yield path, ""


def _contexts(paths: Iterable[Path]) -> list[PresentationContext]:
    """Return the contexts that files need, each class with the syntaxes of its files."""
    pairs = set()
    for path in paths:
        meta = pydicom.filereader.read_file_meta_info(path)
        pairs.add((str(meta.MediaStorageSOPClassUID), str(meta.TransferSyntaxUID)))
    return [build_context(one, syntax) for one, syntax in sorted(pairs)][:MOST_CONTEXTS]


def _by_web(node: Node, paths: Sequence[Path], ends: float) -> Iterator[tuple[Path, str]]:
    from wardround_client.pacs.web.services import send_files

    for path, why in send_files(node, paths, ends):
        yield path, f"{node.name}: the web service did not store an object ({why})" if why else ""


def _refuse_other(path: Path) -> None:
    try:
        header: Dataset | None = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(_TAGS))
    except Exception:  # pydicom raises almost anything for another file
        header = None
    marked = header is not None and MARK in str(header.get("SeriesDescription", "")).casefold()
    if header is None or not marked or header.get("SOPClassUID") not in RESULT_CLASSES:
        raise UsageError(f"{path_text(path)}: was not made by this program, or is not marked as research; not stored")
