"""Images read row by row equal the array, and an unreadable image raises an exception for that image only."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from wardround_client.sources.row_file import RowFile

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 2, 3, 4), dtype=np.uint8)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    np.save(tmp_path / "values.npy", IMAGES)
    return tmp_path / "values.npy"


@pytest.mark.parametrize(
    "chosen",
    [
        0,
        -1,
        slice(1, 4),
        slice(None),
        np.array([3, 0, 3]),
        np.array([True, False, True, False, True]),
        np.array([], int),
        (2, 0),
        (slice(0, 3), 1),
        (np.array([4, 1]), slice(None), 2),
    ],
)
def test_every_way_of_choosing_rows_gives_those_of_the_array(path: Path, chosen) -> None:
    found = RowFile(path)[chosen]
    assert found.dtype == np.uint8 and np.array_equal(found, IMAGES[chosen])


def test_it_is_the_array_as_a_whole_also_in_another_process(path: Path) -> None:
    file = pickle.loads(pickle.dumps(RowFile(path)))
    assert (len(file), file.shape, file.dtype) == (5, (5, 2, 3, 4), np.uint8)
    assert np.array_equal(np.asarray(file), IMAGES) and np.array_equal(np.stack(list(file)), IMAGES)


def test_a_row_beyond_the_end_is_an_index_error(path: Path) -> None:
    with pytest.raises(IndexError):
        RowFile(path)[5]


def test_an_image_that_cannot_be_read_is_an_error_and_the_others_are_there(path: Path) -> None:
    """A memory map would end the process here, with SIGBUS."""
    file = RowFile(path)
    os.truncate(path, path.stat().st_size - 1)
    assert np.array_equal(file[:4], IMAGES[:4])
    with pytest.raises(OSError, match="row 4"):
        file[4]


@pytest.mark.parametrize("array", [np.asfortranarray(IMAGES), np.array(3, np.uint8), np.array([{}], object)])
def test_what_is_no_plain_array_is_refused(tmp_path: Path, array) -> None:
    np.save(tmp_path / "other.npy", array)
    with pytest.raises(ValueError):
        RowFile(tmp_path / "other.npy")


def test_a_file_that_ends_early_is_refused(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(ValueError, match="size"):
        RowFile(path)
