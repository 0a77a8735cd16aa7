"""The three services of DICOMweb that a site uses: queries (QIDO-RS), transfers (WADO-RS), storing (STOW-RS)."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import requests
from pydicom.datadict import tag_for_keyword

from wardround_client.pacs.node import Node, Row, Rows, Take
from wardround_client.pacs.web.client import CONNECT_S, MOST_ANSWER_BYTES, WebClient, open_client, read_whole, until
from wardround_client.pacs.web.errors import attempted

if TYPE_CHECKING:
    from wardround_client.pacs.transfer import Request

LONGEST_ANSWER_S = 600.0  # to one query, or to one object that is stored
_LEVELS = {"STUDY": "search_for_studies", "SERIES": "search_for_series", "IMAGE": "search_for_instances"}
_IN_PATH = {"StudyInstanceUID": "study_instance_uid", "SeriesInstanceUID": "series_instance_uid"}


class WebFinder:
    """Queries a PACS by QIDO-RS. Use it in a `with` statement. `ends` is when all waiting ends."""

    cuts_silently = True

    def __init__(self, node: Node, ends: float) -> None:
        self._node, self._client, self._ends = node, open_client(node), ends

    def __enter__(self) -> WebFinder:
        return self

    def __exit__(self, *error: object) -> None:
        self._client._session.close()

    def find(self, level: str, match: Mapping[str, str], wanted: Iterable[str]) -> Rows:
        """Return what the PACS has. Arguments and errors as those of `dimse.DicomFinder.find`."""
        keywords = list(wanted)
        path = {} if level == "STUDY" else {_IN_PATH[one]: match[one] for one in _IN_PATH if one in match}
        filters = {key: value for key, value in match.items() if level == "STUDY" or key not in _IN_PATH}
        search = getattr(self._client, _LEVELS[level])
        with until(self._node, self._client, min(self._ends, time.monotonic() + LONGEST_ANSWER_S)):
            found = attempted(self._node, lambda: search(**path, search_filters=filters, fields=keywords))
        tags = {f"{tag_for_keyword(keyword):08X}": keyword for keyword in (*match, *keywords)}
        return Rows(rows=[_row(one, tags) for one in found if isinstance(one, dict)])


class WebTransfer:
    """Fetches objects by WADO-RS."""

    def __init__(self, node: Node, take: Take, ends: float) -> None:
        self._node, self._take, self._ends = node, take, ends
        self._client = open_client(node)

    def __enter__(self) -> WebTransfer:
        return self

    def __exit__(self, *error: object) -> None:
        self._client._session.close()

    def fetch(self, request: Request) -> None:
        """Fetch objects, as `transfer.Transfer`."""
        root = f"{self._node.web.url}/studies/{request.study_uid}/series/{request.series_uid}"
        urls = [f"{root}/instances/{sop_uid}" for sop_uid in request.sop_uids] or [root]
        for url in urls:
            with until(self._node, self._client, self._ends):
                attempted(self._node, lambda url=url: self._taken(url))  # type: ignore[misc]  # bound at once

    def _taken(self, url: str) -> None:
        objects = self._client.objects_at(url)
        for content in objects:
            self._take(content)
            if time.monotonic() > self._ends:
                objects.close()  # type: ignore[attr-defined]  # a generator
                raise self._node.out_of_time()


def send_files(node: Node, paths: Iterable[Path], ends: float) -> Iterator[tuple[Path, str]]:
    """Store files by STOW-RS, one by one, as they are. Yields each path with "" or why it was not stored.

    `ends` is when all waiting ends, on the monotonic clock. One file may take `LONGEST_ANSWER_S` of it.

    Raises:
        PacsError: The service does not reply in time, or refuses to be used.
    """
    client = open_client(node)
    try:
        for path in paths:
            with until(node, client, min(ends, time.monotonic() + LONGEST_ANSWER_S)):
                response = attempted(node, partial(_posted, node, client, path))
            yield path, _why_not_stored(response)
    finally:
        client._session.close()


def _posted(node: Node, client: WebClient, path: Path) -> requests.Response:
    """Send one file and return the answer. Raises if it means that the service cannot be used at all."""
    boundary = "wardround-object"
    head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
    media = f'multipart/related; type="application/dicom"; boundary={boundary}'
    response = client._session.post(
        f"{node.web.url}/studies",
        data=head + path.read_bytes() + f"\r\n--{boundary}--\r\n".encode(),
        headers={"Content-Type": media, "Accept": "application/dicom+json"},
        timeout=(CONNECT_S, node.config.timeout_s),
        stream=True,
    )
    read_whole(response, MOST_ANSWER_BYTES)
    if response.status_code in (401, 403, 404) or response.status_code >= 500:
        response.raise_for_status()
    return response


def _row(answer: dict[str, Any], tags: Mapping[str, str]) -> Row:
    row: Row = {}
    for tag, keyword in tags.items():
        element = answer.get(tag)
        values = element.get("Value") if isinstance(element, dict) else None
        if isinstance(values, list) and values and all(isinstance(one, str | int) for one in values):
            row[keyword] = "\\".join(map(str, values))
    return row


def _why_not_stored(response: requests.Response) -> str:
    if response.status_code in (200, 202):
        with suppress(ValueError, KeyError, AttributeError, TypeError):
            failed = response.json().get("00081198", {}).get("Value", [])
            if not failed:
                return ""
            return f"status 0x{int(failed[0]['00081197']['Value'][0]):04X}"
    return f"HTTP status {response.status_code}"
