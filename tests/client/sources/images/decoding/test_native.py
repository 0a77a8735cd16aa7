"""Uncompressed pixels that are read from their place are those that pydicom decodes."""

import io
from pathlib import Path

import numpy as np
import pydicom
import pytest
from builders.dicom_files import KEY, ct_bytes, ct_study, slice_hu, write_ct
from pydicom.dataset import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian, MRImageStorage

from wardround_client.sources.images.decoding.dicom_header import scan_dicom
from wardround_client.sources.images.decoding.dicom_pixels import read_frame
from wardround_client.sources.images.stages import UnfitImage

WHEEL = Path(pydicom.__file__).parent / "data" / "test_files"
ANY = ct_study(modality="any")


def native_of(path):
    return scan_dicom(io.BytesIO(path.read_bytes()), "", ANY, KEY).native


def outcome(path, frame, native):
    """The pixels of a frame and what is said about them, or the reason why there are none."""
    try:
        pixels = read_frame(path, frame, native)
        return pixels.values.tobytes(), pixels.values.shape, pixels.hu, pixels.source_sha256
    except UnfitImage as error:
        return error.code


def sequence(undefined):
    inner, outer = Dataset(), Dataset()
    inner.ReferencedSOPInstanceUID = "1.2.3"
    outer.ReferencedImageSequence = [inner, inner]
    outer["ReferencedImageSequence"].is_undefined_length = undefined
    outer.is_undefined_length_sequence_item = undefined
    return [outer, Dataset()]


VARIANTS = {
    "plain": {},
    "implicit": {"syntax": ImplicitVRLittleEndian},
    "sequences": {"SourceImageSequence": sequence(False), "RequestAttributesSequence": sequence(True)},
    "numbers": {"RescaleSlope": "1.0E0", "RescaleIntercept": " -1024", "InstanceNumber": "+007"},
    "mr": {"SOPClassUID": MRImageStorage, "Modality": "MR", "WindowCenter": [900, 80], "WindowWidth": [1800, 350]},
    "inverted": {"Modality": "DX", "PhotometricInterpretation": "MONOCHROME1", "RescaleSlope": None},
    "padding": {"PixelPaddingValue": 4, "PixelPaddingRangeLimit": 9, "PixelRepresentation": 0},
    "words": {"ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"], "BodyPartExamined": "chest ", "BurnedInAnnotation": "NO"},
    "no rescale": {"RescaleSlope": None, "RescaleIntercept": None},
    "unit": {"RescaleType": "US"},
    "no positions": {"ImagePositionPatient": None, "PixelSpacing": None, "ImagerPixelSpacing": [0.2, 0.2]},
    "bad spacing": {"PixelSpacing": [0.0, 1.0]},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_pixels_read_from_their_place_are_those_that_pydicom_decodes(tmp_path, name):
    hu = slice_hu(3)
    hu[:4] = -1018
    path = write_ct(tmp_path / "a.dcm", hu, **VARIANTS[name])
    native = native_of(path)
    assert native is not None
    assert outcome(path, 0, native) == outcome(path, 0, None)


def test_each_frame_of_a_multi_frame_file_is_read_from_its_place(tmp_path):
    frames = np.stack([slice_hu(n, 33) for n in range(3)])
    path = write_ct(tmp_path / "a.dcm", frames)
    native = native_of(path)
    for index in range(3):
        assert np.array_equal(read_frame(path, index, native).values, frames[index])
        assert outcome(path, index, native) == outcome(path, index, None)


def test_every_uncompressed_real_file_gives_the_same_pixels():
    compared = 0
    for path in sorted(WHEEL.rglob("*.dcm")):
        try:
            record = scan_dicom(path, "", ANY, KEY)
        except Exception:  # noqa: S112 - damaged on purpose, which the test of real files covers
            continue
        if record.native is not None and not record.fault:
            assert outcome(path, 0, record.native) == outcome(path, 0, None), path.name
            compared += 1
    assert compared >= 4


@pytest.mark.parametrize(
    "tags",
    [
        {"syntax": ExplicitVRBigEndian},
        {"syntax": DeflatedExplicitVRLittleEndian},
        {"PerFrameFunctionalGroupsSequence": [Dataset()]},
        {"ModalityLUTSequence": [Dataset()]},
        {"VOILUTSequence": [Dataset()]},
        {"RescaleSlope": [1, 2]},
        {"PhotometricInterpretation": "PALETTE COLOR"},
        {"BitsStored": 0},
        {"NumberOfFrames": 2},
    ],
)
def test_what_needs_a_decoder_is_left_to_pydicom(tmp_path, tags):
    assert native_of(write_ct(tmp_path / "a.dcm", **tags)) is None


def test_a_file_that_ends_before_its_pixels_do_is_left_to_pydicom(tmp_path):
    path = write_ct(tmp_path / "a.dcm")
    path.write_bytes(path.read_bytes()[:-1])
    assert native_of(path) is None


def test_damage_anywhere_in_a_header_gives_the_pixels_that_pydicom_would_give(tmp_path):
    random, whole = np.random.default_rng(11), ct_bytes(slice_hu(1, 20), SourceImageSequence=sequence(True))
    end, compared = whole.index(b"\xe0\x7f\x10\0OW"), 0
    for number in range(600):
        damaged = bytearray(whole)
        for place in random.integers(132, end, random.integers(1, 4)):
            damaged[place] = random.integers(256)
        path = tmp_path / f"{number}.dcm"
        path.write_bytes(damaged)
        try:
            native = native_of(path)
        except Exception:  # noqa: S112 - nothing to compare: the scan fails
            continue
        if native is not None:
            try:
                decoded = outcome(path, 0, None)
            except Exception:  # noqa: S112 - pydicom cannot decode what lies in one piece
                continue
            assert outcome(path, 0, native) == decoded, bytes(damaged[132:end])
            compared += 1
    assert compared > 200


def test_only_the_read_frame_is_loaded(tmp_path):
    path = write_ct(tmp_path / "a.dcm", np.stack([slice_hu(n, 20) for n in range(4)]))
    native = native_of(path)
    path.write_bytes(path.read_bytes()[: -20 * 20 * 2])  # without the last frame
    assert native.read(path, 2).shape == (20, 20)
    with pytest.raises(ValueError, match="reshape"):
        native.read(path, 3)
