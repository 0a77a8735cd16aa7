"""Reads FHIR R4 resources one by one: NDJSON as bulk exports have it, plain or gzip, and bundles.

NDJSON is read line by line, so memory does not grow with the file. A bundle is one JSON document and has to fit into
memory; a larger one is refused with the way out. What is not valid JSON is counted and passed over.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import orjson

from wardround.errors import DataError
from wardround.storage.disk_errors import cause
from wardround.storage.text_file import path_text
from wardround_client.sources.records.quality.counts import Counts

Resource = dict[str, Any]

LONGEST_RESOURCE = 2**20  # bytes of a line; a longer one is counted as unreadable
LARGEST_BUNDLE = 32 * 2**20
MOST_ELEMENTS = 2_000_000  # objects and lists of a bundle: each takes many times its bytes once it is parsed
START_BYTES = 4096
GZIP = b"\x1f\x8b"
TYPES = ("Patient", "Encounter", "Observation", "Condition")


def is_fhir(path: Path) -> bool:
    """Whether a JSON file holds FHIR resources, by its beginning. Other JSON files are not read."""
    try:
        with _opened(path) as file:
            return b'"resourceType"' in file.read(START_BYTES)
    except (OSError, EOFError, zlib.error):
        return True  # `resources` says what is wrong with it


def resources(path: Path, counts: Counts) -> Iterator[Resource]:
    """Yield the resources of a file; of a bundle, those of its entries.

    Raises:
        DataError: The file cannot be read or is damaged, or a bundle is too large.
    """
    try:
        with _opened(path) as file:
            if ".ndjson" in path.name.lower():
                yield from _of_lines(file, counts)
            else:
                yield from _of_document(path, file, counts)
    except (OSError, EOFError, zlib.error) as error:
        why = cause(error) if isinstance(error, OSError) and error.errno else "damaged or cut short; export it again"
        raise DataError(f"{shown(path)}: cannot be read: {why}") from None


def shown(path: Path) -> str:
    """Return how a message names a file: files of a bulk export by name, others not, as theirs may be a patient's."""
    if re.match(r"[A-Z][A-Za-z]+\.([\w-]+\.)?ndjson", path.name) and path.name.startswith(TYPES):
        return path_text(path)
    return f"{path_text(path.parent)}: a FHIR file in it"


def _opened(path: Path) -> BinaryIO:
    with open(path, "rb") as file:
        packed = file.read(2) == GZIP
    return cast(BinaryIO, gzip.GzipFile(path, "rb") if packed else open(path, "rb"))


def _of_lines(file: BinaryIO, counts: Counts) -> Iterator[Resource]:
    while line := file.readline(LONGEST_RESOURCE):
        if len(line) == LONGEST_RESOURCE and not line.endswith(b"\n"):
            while (rest := file.readline(LONGEST_RESOURCE)) and not rest.endswith(b"\n"):
                pass
            counts.add("unreadable_resource")
        elif line.strip():
            yield from _parsed(line, counts)


def _of_document(path: Path, file: BinaryIO, counts: Counts) -> Iterator[Resource]:
    content = file.read(LARGEST_BUNDLE + 1)
    if len(content) > LARGEST_BUNDLE:
        raise DataError(
            f"{shown(path)}: is larger than {LARGEST_BUNDLE // 2**20} MB, more than is read as one document; "
            "export it as NDJSON, or as several bundles"
        )
    if content.count(b"{") + content.count(b"[") > MOST_ELEMENTS:
        raise DataError(
            f"{shown(path)}: has more than {MOST_ELEMENTS:,} elements, more than is read as one document; "
            "export it as NDJSON, or as several bundles"
        )
    yield from _parsed(content, counts)


def _parsed(content: bytes, counts: Counts) -> Iterator[Resource]:
    try:
        found = orjson.loads(content)
    except orjson.JSONDecodeError:  # damaged, not UTF-8, or nested too deeply
        counts.add("unreadable_resource")
        return
    if isinstance(found, dict) and found.get("resourceType") == "Bundle":
        entries = found.get("entry")
        for entry in entries if isinstance(entries, list) else ():
            resource = entry.get("resource") if isinstance(entry, dict) else None
            if isinstance(resource, dict) and isinstance(resource.get("resourceType"), str):
                yield resource
            else:
                counts.add("unreadable_resource")
    elif isinstance(found, dict) and isinstance(found.get("resourceType"), str):
        yield found
    else:
        counts.add("unreadable_resource")
