"""The size that a compressed picture has by its own header, read before a decoder allocates memory for it.

A file of 100 kB may hold a codestream that says 60,000 x 60,000 pixels under a DICOM header that says 512 x 512.
"""

from __future__ import annotations

from pydicom import Dataset
from pydicom.encaps import get_frame

from wardround_client.sources.images.stages import UnfitImage

SEARCHED_BYTES = 1 << 16  # JP2 boxes, comments and thumbnails lie before the size
JPEG_2000_START = b"\xff\x4f\xff\x51"  # SOC and SIZ (ISO/IEC 15444-1, A.4.1 and A.5.1)
# Frame headers with a size: SOF0 to SOF15 without DHT, JPG and DAC (ITU-T T.81, B.2.2), SOF55 of JPEG-LS (T.87, C.2.2).
JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {0xF7}


def refuse_larger_codestream(dataset: Dataset, index: int) -> None:
    """Raise `UnfitImage("too_large")` if a frame's compressed picture is larger than the DICOM header says."""
    if not dataset.file_meta.TransferSyntaxUID.is_encapsulated or "PixelData" not in dataset:
        return
    frames = int(dataset.get("NumberOfFrames") or 1)
    try:
        frame = get_frame(dataset.PixelData, index, number_of_frames=frames)
    except Exception:
        return  # damaged: the decoder reports it
    size = codestream_size(frame[:SEARCHED_BYTES])
    if size is not None and size[0] * size[1] > max(int(dataset.Rows), 1) * max(int(dataset.Columns), 1):
        raise UnfitImage("too_large")


def codestream_size(start: bytes) -> tuple[int, int] | None:
    """Return rows and columns of a JPEG, JPEG-LS, JPEG 2000 or HTJ2K codestream; None for anything else."""
    at = start.find(JPEG_2000_START)
    if at >= 0 and len(start) >= at + 24:
        right, bottom, left, top = (int.from_bytes(start[at + 8 + 4 * n : at + 12 + 4 * n], "big") for n in range(4))
        return max(0, bottom - top), max(0, right - left)
    return _jpeg_size(start) if start[:2] == b"\xff\xd8" else None


def _jpeg_size(start: bytes) -> tuple[int, int] | None:
    at = 2
    while at + 9 <= len(start):
        if start[at] != 0xFF:
            return None
        marker = start[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker in JPEG_FRAMES:
            return int.from_bytes(start[at + 5 : at + 7], "big"), int.from_bytes(start[at + 7 : at + 9], "big")
        at += 2 + int.from_bytes(start[at + 2 : at + 4], "big")
    return None
