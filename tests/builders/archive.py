"""A small PACS in this process, on a port of 127.0.0.1, and the site that knows it."""

from __future__ import annotations

import io
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from builders.dicom_files import ct_bytes, ct_dataset, slice_hu
from pydicom import Dataset, dcmread
from pynetdicom import AE, evt
from pynetdicom.sop_class import (
    ComprehensiveSRStorage,
    CTImageStorage,
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
    Verification,
)

from wardround_client.pacs.store import RESULT_CLASSES

SITE = """\
name = "north"
[privacy]
epsilon_cap = 8.0
delta_cap = 1e-4
[pacs.archive]
timeout_s = 2
{more}
[pacs.archive.dicom]
address = "127.0.0.1:{port}"
pacs_ae = "TESTPACS"
listen = "127.0.0.1:{listen}"
"""


SMALL_STUDY = """\
[study]
name = "small"
rounds = 1
[data]
modality = "CT"
image_size = 64
channels = "slices"
labels = ["benign", "malignant"]
[model]
name = "seed-cnn"
init = "random"
[privacy]
epsilon = 8.0
delta = 1e-3
max_grad_norm = 0.3
nominal_patients = 8
[aggregation]
nominal_sites = 1
"""
SLICES = 3  # of a patient


def slices(patient: int, numbers=range(SLICES)) -> list[bytes]:
    """CT slices of a patient, in a study and a series of their own."""
    return [
        ct_bytes(
            slice_hu(10 * patient + number),
            PatientID=f"CANARY-{patient}",
            StudyInstanceUID=f"1.2.{patient}",
            SeriesInstanceUID=f"1.2.{patient}.1",
            SOPInstanceUID=f"1.2.{patient}.1.{number + 1}",
            StudyDate="20240105",
            ImagePositionPatient=[0.0, 0.0, 4.0 * number],
            InstanceNumber=number + 1,
        )
        for number in numbers
    ]


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def write_site(folder: Path, pacs: Archive, more: str = "", rest: str = "") -> Path:
    """Write a site that knows the PACS under its name "archive", and is known to it."""
    folder.mkdir(exist_ok=True)
    pacs.listen = pacs.listen or free_port()
    (folder / "site.toml").write_text(SITE.format(port=pacs.port, listen=pacs.listen, more=more) + rest)
    return folder


def small_ct(study: int, number: int, *, day: str = "20240105") -> bytes:
    """An object of few bytes, in the DICOM file format."""
    dataset = ct_dataset(
        np.full((4, 4), study),
        SOPInstanceUID=f"1.2.3.{study}.1.{number}",
        StudyInstanceUID=f"1.2.3.{study}",
        SeriesInstanceUID=f"1.2.3.{study}.1",
        StudyDate=day,
        StudyTime="101500",
        AccessionNumber=f"A{study}",
        StudyDescription="Chest",
        SeriesDescription="axial",
        BodyPartExamined="CHEST",
    )
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    content = io.BytesIO()
    dataset.save_as(content, enforce_file_format=True)
    return content.getvalue()


@dataclass
class Archive:
    """What the PACS holds and how it misbehaves.

    `send_at_most` is the number of objects after which it ends the connection, once. `sends_too` are objects that it
    sends although nobody asked. `withheld` are UIDs that it lists and does not send. `grows` are objects that appear
    when a series has been sent for the first time. `stored` is what it was sent to store; it refuses the first
    `refuse_first` of those.
    """

    port: int
    objects: dict[str, Dataset] = field(default_factory=dict)
    send_at_most: int | None = None
    sends_too: list[Dataset] = field(default_factory=list)
    withheld: set[str] = field(default_factory=set)
    grows: list[bytes] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    stored: dict[str, Dataset] = field(default_factory=dict)
    refuse_first: int = 0
    listen: int = 0

    def add(self, *contents: bytes) -> None:
        for content in contents:
            dataset = dcmread(io.BytesIO(content))
            self.objects[dataset.SOPInstanceUID] = dataset

    def found(self, query: Dataset) -> list[Dataset]:
        level = {"STUDY": "StudyInstanceUID", "SERIES": "SeriesInstanceUID", "IMAGE": "SOPInstanceUID"}
        key = level[query.QueryRetrieveLevel]
        answers = {}
        for one in list(self.objects.values()):
            if all(
                self._fits(query, one, name) for name in ("StudyInstanceUID", "SeriesInstanceUID", "AccessionNumber")
            ):
                low, _, high = str(query.get("StudyDate") or "0-9").partition("-")
                if low <= one.StudyDate <= (high or low):
                    answers[one[key].value] = one
        return [self._answer(query, one) for one in answers.values()]

    def _answer(self, query: Dataset, one: Dataset) -> Dataset:
        answer = Dataset()
        for element in query:
            if element.keyword == "NumberOfSeriesRelatedInstances":
                series = one.SeriesInstanceUID
                count = sum(other.SeriesInstanceUID == series for other in self.objects.values())
                answer.NumberOfSeriesRelatedInstances = count
            elif element.keyword in one:
                setattr(answer, element.keyword, one[element.keyword].value)
        answer.QueryRetrieveLevel = query.QueryRetrieveLevel
        return answer

    def chosen(self, query: Dataset) -> list[Dataset]:
        keys = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
        those = [one for one in self.objects.values() if all(self._fits(query, one, name) for name in keys)]
        kept = [one for one in those if one.SOPInstanceUID not in self.withheld]
        self.add(*self.grows)
        self.grows = []
        return [*kept, *self.sends_too]

    @staticmethod
    def _fits(query: Dataset, one: Dataset, name: str) -> bool:
        wanted = query.get(name)
        values = [wanted] if isinstance(wanted, str) else list(wanted or [])
        return not any(values) or one.get(name) in values


@contextmanager
def archive(*contents: bytes) -> Iterator[Archive]:
    """Run a PACS for as long as the block lasts."""
    here = Archive(port=free_port())
    here.add(*contents)

    def find(event):
        query = event.identifier
        here.requests.append(f"find {query.QueryRetrieveLevel}")
        for one in here.found(query):
            yield 0xFF00, one
        yield 0x0000, None

    def send(event, kind):
        chosen = here.chosen(event.identifier)
        here.requests.append(f"{kind} {event.identifier.QueryRetrieveLevel} {len(chosen)}")
        yield len(chosen)
        for number, one in enumerate(chosen):
            if here.send_at_most is not None and number >= here.send_at_most:
                here.send_at_most = None
                event.assoc.abort()
                return
            yield 0xFF00, one

    def moved(event):
        yield "127.0.0.1", here.listen, {"ae_title": "WARDROUND"}
        yield from send(event, "move")

    def got(event):
        yield from send(event, "get")

    def kept(event):
        if here.refuse_first:
            here.refuse_first -= 1
            return 0xA700
        dataset = event.dataset
        dataset.file_meta = event.file_meta
        here.stored[dataset.SOPInstanceUID] = dataset
        return 0x0000

    entity = AE("TESTPACS")
    for result in RESULT_CLASSES:
        entity.add_supported_context(result)
    for model in (
        StudyRootQueryRetrieveInformationModelFind,
        StudyRootQueryRetrieveInformationModelGet,
        StudyRootQueryRetrieveInformationModelMove,
        Verification,
    ):
        entity.add_supported_context(model)
    entity.add_supported_context(CTImageStorage, scu_role=True, scp_role=True)
    entity.add_requested_context(CTImageStorage)
    entity.add_requested_context(ComprehensiveSRStorage)
    entity.require_called_aet = True
    handlers = [(evt.EVT_C_FIND, find), (evt.EVT_C_MOVE, moved), (evt.EVT_C_GET, got), (evt.EVT_C_STORE, kept)]
    server = entity.start_server(("127.0.0.1", here.port), block=False, evt_handlers=handlers)
    try:
        yield here
    finally:
        server.shutdown()
