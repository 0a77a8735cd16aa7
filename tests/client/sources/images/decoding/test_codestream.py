"""A compressed picture that is larger than its DICOM header says is refused before it is decoded."""

import io
import struct

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000Lossless, JPEGBaseline8Bit

from wardround.sources.images.study import ImageData
from wardround_client.sources.images.decoding.codestream import codestream_size
from wardround_client.sources.images.decoding.dicom_pixels import read_frame
from wardround_client.sources.images.decoding.pictures import read_picture
from wardround_client.sources.images.decoding.prepare import scan
from wardround_client.sources.images.decoding.workers import (
    LEAST_WORKER_BYTES,
    MOST_WORKER_BYTES,
    WorkerPool,
    memory_limit_bytes,
)
from wardround_client.sources.images.stages import UnfitImage


def encoded(kind: str, shape=(32, 48)) -> bytes:
    content = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(pixels).save(content, format=kind, **({"no_jp2": True} if kind == "JPEG2000" else {}))
    return content.getvalue()


def announcing(kind: str, rows: int, columns: int) -> bytes:
    """A codestream whose own header says another size."""
    content = bytearray(encoded(kind))
    if kind == "JPEG2000":
        at = content.index(b"\xff\x4f\xff\x51") + 8
        content[at : at + 8] = struct.pack(">II", columns, rows)
        content[at + 16 : at + 24] = struct.pack(">II", columns, rows)  # one tile
    else:
        at = next(i for i in range(len(content)) if content[i] == 0xFF and content[i + 1] in (0xC0, 0xC2)) + 5
        content[at : at + 4] = struct.pack(">HH", rows, columns)
    return bytes(content)


def dicom(path, content, syntax):
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", "1.2.3"
    dataset.PatientID, dataset.Modality = "P1", "OT"
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = 32, 48, 1
    dataset.PhotometricInterpretation, dataset.BitsAllocated, dataset.BitsStored = "MONOCHROME2", 8, 8
    dataset.HighBit, dataset.PixelRepresentation = 7, 0
    dataset.PixelData = encapsulate([content])
    dataset["PixelData"].is_undefined_length = True
    dataset.save_as(path, enforce_file_format=True)
    return path


@pytest.mark.parametrize("kind, syntax", [("JPEG2000", JPEG2000Lossless), ("JPEG", JPEGBaseline8Bit)])
def test_a_codestream_larger_than_its_header_is_not_decoded(tmp_path, kind, syntax):
    assert codestream_size(encoded(kind)) == (32, 48)
    assert read_frame(dicom(tmp_path / "good.dcm", encoded(kind), syntax), 0).values.shape == (32, 48)
    bomb = announcing(kind, 60_000, 60_000)
    assert codestream_size(bomb) == (60_000, 60_000)
    with pytest.raises(UnfitImage) as caught:
        read_frame(dicom(tmp_path / "bomb.dcm", bomb, syntax), 0)
    assert caught.value.code == "too_large"


@pytest.mark.parametrize("content", [b"", b"\xff\xd8", b"\xff\xd8\xff", b"\xff\x4f\xff\x51" + b"\0" * 9, b"\0" * 4000])
def test_anything_else_has_no_size(content):
    assert codestream_size(content) is None


def test_damaged_starts_never_raise():
    rng = np.random.default_rng(1)
    for kind in ("JPEG", "JPEG2000"):
        good = bytearray(encoded(kind))
        for _ in range(500):
            spoilt = bytearray(good)
            for place in rng.integers(2, 60, 3):
                spoilt[place] = rng.integers(256)
            codestream_size(bytes(spoilt[: int(rng.integers(len(spoilt)))]))


def test_a_picture_file_of_jpeg_2000_is_read(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 48), dtype=np.uint8)).save(tmp_path / "a.jp2")
    record = scan(tmp_path / "a.jp2", ImageData(image_size=16, labels=("a", "b"), modality="any"), b"key")
    assert (record.fault, record.rows, record.columns) == ("", 32, 48)


def test_a_workers_memory_follows_from_the_machine_and_the_number_of_workers(monkeypatch):
    from wardround_client.sources.images.decoding import workers

    for machine, count, limit in (
        (24 << 30, 2, 6 << 30),
        (256 << 30, 2, MOST_WORKER_BYTES),
        (2 << 30, 8, LEAST_WORKER_BYTES),
    ):
        monkeypatch.setattr(workers, "machine_memory_bytes", lambda machine=machine: machine)
        assert memory_limit_bytes(count) == limit


def test_a_worker_that_wants_more_gets_an_error_and_lives(tmp_path, monkeypatch):
    (tmp_path / "of_this_test.py").write_text(
        "def take(gigabytes):\n"
        "    try:\n"
        "        return len(bytearray(gigabytes << 30))\n"
        "    except MemoryError:\n"
        "        return 'refused'\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    from of_this_test import take

    from wardround_client.sources.images.decoding import workers

    monkeypatch.setattr(workers, "machine_memory_bytes", lambda: 2 << 30)
    with WorkerPool(1) as pool:
        assert list(pool.map(take, [8, 0])) == ["refused", 0]


def test_a_telephones_photo_with_a_second_picture_is_its_first(tmp_path):
    first, second = (np.full((32, 48, 3), grey, np.uint8) for grey in (40, 200))
    Image.fromarray(first).save(
        tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[Image.fromarray(second)], quality=95
    )
    record = scan(tmp_path / "a.jpg", ImageData(image_size=16, labels=("a", "b"), modality="any"), b"key")
    assert record.fault == ""
    assert np.abs(read_picture(tmp_path / "a.jpg").astype(int) - first).max() < 5
