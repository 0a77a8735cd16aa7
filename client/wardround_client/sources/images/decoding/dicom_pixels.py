"""The pixels of one DICOM frame: Hounsfield units if the file specifies them, otherwise grey values 0..255.

Decoding uses pydicom's own decoders, with python-gdcm and pylibjpeg (openjpeg, rle) as plugins. It runs in a worker
process.
"""

from __future__ import annotations

import functools
import hashlib
import math
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi, pixel_array
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from wardround_client.sources.images.decoding.codestream import refuse_larger_codestream
from wardround_client.sources.images.decoding.crop import robust_window
from wardround_client.sources.images.decoding.frame_attributes import frame_scopes
from wardround_client.sources.images.decoding.native import NativePixels, Scaling, scaling_of
from wardround_client.sources.images.stages import UnfitImage

PIXEL_KEYWORDS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
OUTSIDE_SCAN_HU = -1500.0  # scanners fill the corners outside the reconstruction circle with -2000 or less
SAMPLES_FOR_CHECK = 16_384


@dataclass(frozen=True, kw_only=True)
class FramePixels:
    """One decoded frame: float32, H x W, or H x W x 3 for colour. `source_sha256` is the hash of the stored values."""

    values: np.ndarray
    hu: bool
    source_sha256: str


def read_frame(path: Path, index: int, native: NativePixels | None = None) -> FramePixels:
    """Decode frame `index` (counted from 0). `native` is where a scan found uncompressed pixels.

    CT with a rescale to HU stays in HU, whatever its photometric interpretation. Everything else becomes grey 0..255 in
    which dark means dark: MONOCHROME1 is inverted, palettes are looked up, and YBR is converted to RGB.

    Raises:
        UnfitImage: The frame cannot be used; the error has the reason.
        Exception: A decoder's own error.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if native is not None:
            return _grey_frame(native.read(path, index), native.scaling)
        return _decode(_open(path, path.stat().st_mtime_ns), index)


def frame_count(path: Path) -> int:
    """Return the number of frames of a DICOM file, at least 1."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return max(1, int(_open(path, path.stat().st_mtime_ns).get("NumberOfFrames") or 1))


@functools.lru_cache(maxsize=1)
def _open(path: Path, changed_ns: int) -> Dataset:
    """Read a file, and keep the last one in memory for its next frame.

    A file without a transfer syntax gets the one in which it was read, as long as its pixels are not compressed.
    """
    dataset = pydicom.dcmread(path, force=True)
    if not getattr(dataset, "file_meta", None):
        dataset.file_meta = FileMetaDataset()
    if not dataset.file_meta.get("TransferSyntaxUID"):
        if "PixelData" in dataset and dataset["PixelData"].is_undefined_length:
            raise UnfitImage("no_decoder")
        implicit, little = dataset.original_encoding
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
    return dataset


def _decode(dataset: Dataset, index: int) -> FramePixels:
    if not any(keyword in dataset for keyword in PIXEL_KEYWORDS):
        raise UnfitImage("no_pixels")
    stored = _stored_values(dataset, index)
    photometric = str(dataset.get("PhotometricInterpretation", ""))
    if photometric != "PALETTE COLOR" and stored.ndim == 2:
        bits = int(dataset.BitsAllocated) if np.issubdtype(stored.dtype, np.integer) else None
        return _grey_frame(stored, scaling_of(dataset, frame_scopes(dataset, index), bits), dataset)
    source_sha256 = _hash_unless_blank(stored)
    if photometric == "PALETTE COLOR":
        stored = apply_color_lut(stored, dataset)
    values = _eight_bits(stored, dataset, photometric)
    return _finite(values, hu=False, source_sha256=source_sha256)


def _hash_unless_blank(stored: np.ndarray) -> str:
    if stored.min() == stored.max():
        raise UnfitImage("blank")
    shape = repr(stored.shape).encode()
    digest = hashlib.sha256(shape)
    digest.update(np.ascontiguousarray(stored).data)
    return digest.hexdigest()


def _finite(values: np.ndarray, *, hu: bool, source_sha256: str) -> FramePixels:
    if not (np.isfinite(values.min()) and np.isfinite(values.max())):  # one that is no number makes both so
        raise UnfitImage("unreadable")
    return FramePixels(values=values.astype(np.float32, copy=False), hu=hu, source_sha256=source_sha256)


def _stored_values(dataset: Dataset, index: int) -> np.ndarray:
    refuse_larger_codestream(dataset, index)
    try:
        return pixel_array(dataset, index=index)
    except NotImplementedError:
        raise UnfitImage("no_decoder") from None
    except RuntimeError as error:
        # pydicom tries each decoder and lists their errors. 12-bit lossy JPEG needs a decoder whose licence is not free
        # enough for this project.
        raise UnfitImage("no_decoder" if "does not support" in str(error) else "unreadable") from None


def _eight_bits(colour: np.ndarray, dataset: Dataset, photometric: str) -> np.ndarray:
    """Scale colour of any depth to 0..255."""
    if colour.dtype == np.uint8:
        return colour
    if photometric == "PALETTE COLOR":
        bits = int(dataset.RedPaletteColorLookupTableDescriptor[2])
    else:
        bits = int(dataset.get("BitsStored") or dataset.BitsAllocated)
    return colour.astype(np.float32) * (255.0 / (2**bits - 1))


def _grey_frame(stored: np.ndarray, scaling: Scaling, dataset: Dataset | None = None) -> FramePixels:
    """Scale stored values to HU or grey 0..255. `dataset` is needed for its modality or VOI table, if it has one."""
    source_sha256 = _hash_unless_blank(stored)
    padded = None
    if scaling.padding is not None:
        low, high = scaling.padding
        padded = (stored >= low) & (stored <= high)
    values, hu = _modality_values(stored, scaling, dataset)
    if hu:
        if padded is not None:
            values[padded] = OUTSIDE_SCAN_HU
        _refuse_implausible_hu(values)
        return _finite(values, hu=True, source_sha256=source_sha256)
    if padded is not None and padded.all():
        raise UnfitImage("blank")
    grey = np.clip(_voi_grey(values, padded, scaling, dataset), 0, 255)
    if scaling.inverted:
        grey = 255.0 - grey
    if padded is not None:
        grey = np.where(padded, 0.0, grey)
    return _finite(grey, hu=False, source_sha256=source_sha256)


def _modality_values(stored: np.ndarray, scaling: Scaling, dataset: Dataset | None) -> tuple[np.ndarray, bool]:
    """Apply the modality LUT or rescale to stored values (PS3.3 C.11.1); also return whether the result is in HU."""
    tables = None if dataset is None else dataset.get("ModalityLUTSequence")
    if dataset is not None and tables:
        unit = str(tables[0].get("ModalityLUTType") or "").strip()
        is_ct = str(dataset.get("Modality") or "") == "CT"
        return apply_modality_lut(stored, dataset).astype(np.float32), is_ct and unit == "HU"
    values = stored.astype(np.float32)
    if scaling.slope is None:
        return values, False
    values *= np.float32(scaling.slope)
    values += np.float32(scaling.intercept)
    return values, scaling.hu


def _refuse_implausible_hu(values: np.ndarray) -> None:
    """Raise `UnfitImage("implausible_hu")` if a slice cannot be in Hounsfield units.

    The checks apply to the pixels inside the reconstruction circle: nearly all of them lie between air and metal; some
    are air, lung or fat; and there is a body, whose median lies between lung and bone.
    """
    step = max(1, int(np.sqrt(values.size / SAMPLES_FOR_CHECK)))
    sample = values[::step, ::step]
    sample = sample[sample > OUTSIDE_SCAN_HU]
    if sample.size == 0:
        raise UnfitImage("blank")
    in_range = np.count_nonzero((sample >= -1100) & (sample <= 3100)) / sample.size
    body = sample[sample > -500]
    has_body = body.size >= 0.005 * sample.size
    if in_range < 0.95 or not has_body or not _has_air(sample) or not _median_within(-300, 600, body):
        raise UnfitImage("implausible_hu")


def _median_within(low: float, high: float, values: np.ndarray) -> bool:
    """Whether the median lies in the range: by counting, except where it lies at an end of the range."""
    counts = int(np.count_nonzero(values < low)), int(np.count_nonzero(values > high))
    if max(counts) >= values.size // 2 + 1:
        return False
    return max(counts) <= (values.size - 1) // 2 or bool(low <= np.median(values) <= high)


def _has_air(sample: np.ndarray) -> bool:
    """Return whether the 0.5th percentile is at most -50 HU. Counting decides nearly always, and is faster."""
    low, last = np.count_nonzero(sample <= -50), 0.005 * (sample.size - 1)
    if low > math.ceil(last):
        return True
    return bool(low > math.floor(last) and np.percentile(sample, 0.5) <= -50)


def _voi_grey(values: np.ndarray, padded: np.ndarray | None, scaling: Scaling, dataset: Dataset | None) -> np.ndarray:
    """Convert values without a unit to grey 0..255, by the file's VOI LUT or window (PS3.3 C.11.2).

    Without either, the values are scaled image by image.
    """
    tables = None if dataset is None else dataset.get("VOILUTSequence")
    if dataset is not None and tables and np.array_equal(values, np.rint(values)):
        bits = int(tables[0].LUTDescriptor[2])
        return apply_voi(values.astype(np.int32), dataset).astype(np.float32) * (255.0 / (2**bits - 1))
    centre, width = scaling.centre, scaling.width
    low, high = robust_window(values if padded is None else values[~padded])
    if centre is not None and width is not None and width > 1:
        shown = centre - width / 2, centre + width / 2
        # A window that does not overlap the values (a known fault of converted files) would give a blank image.
        if shown[0] < high and shown[1] > low:
            low, high = shown
    return (values - low) * (255.0 / (high - low))
