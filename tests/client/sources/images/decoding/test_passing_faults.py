"""A cause that may pass is not remembered: the files come back with the share, and losing most of them is an error."""

import errno

import pytest
from builders.pictures import KEY, manifest, many, run, study

from wardround.errors import DataError
from wardround_client.sources.cohort import open_cohort
from wardround_client.sources.images.decoding import prepare as preparing
from wardround_client.sources.images.decoding.workers import WorkerPool
from wardround_client.sources.images.folder.layout import discover
from wardround_client.sources.images.ingest import ingest
from wardround_client.sources.images.stages import PreparedImage


class PoolOfOne:
    """Runs the work in this process, where a test can make it fail."""

    def map(self, function, items):
        return map(function, items)


@pytest.fixture
def away(monkeypatch):
    """Makes reading fail for files whose name is in the set that it returns."""
    names, real = set(), preparing.prepare_picture

    def prepare_picture(path, data):
        if path.name in names:
            raise OSError(errno.EIO, "Input/output error", str(path))
        return real(path, data)

    monkeypatch.setattr(preparing, "prepare_picture", prepare_picture)
    return names


@pytest.mark.parametrize(
    "error, code",
    [
        (OSError(errno.EIO, "Input/output error"), "unreachable"),
        (FileNotFoundError(errno.ENOENT, "No such file"), "unreachable"),
        (PermissionError(errno.EACCES, "Permission denied"), "unreachable"),
        (MemoryError(), "out_of_memory"),
        (OSError("image file is truncated"), "unreadable"),
        (ValueError("bad data"), "unreadable"),
    ],
)
def test_an_error_of_the_system_is_told_from_one_of_the_file(error, code):
    assert preparing._reason(error) == code


def test_a_file_that_vanished_before_its_header_was_read(tmp_path):
    assert preparing.scan(tmp_path / "gone.dcm", study(), KEY).fault == "unreachable"


def test_a_share_that_was_away_for_some_files_gives_them_back_at_the_next_ingest(tmp_path, away):
    folder = manifest(tmp_path / "data", many())
    away.update(f"{number:02d}.png" for number in range(10))
    first = run(folder, tmp_path / "out", PoolOfOne())
    assert first.quality.quarantined == {"unreachable": 10} and first.quality.rows == 30
    away.clear()
    second = run(folder, tmp_path / "out", PoolOfOne())
    assert (second.quality.rows, second.decoded, second.reused) == (40, 10, 30)


def test_losing_most_files_is_an_error_and_leaves_the_cohort_as_it_was(tmp_path, away):
    folder = manifest(tmp_path / "data", many())
    run(folder, tmp_path / "out", PoolOfOne())
    (tmp_path / "out/decoded.csv").unlink()
    before = open_cohort(tmp_path / "out")
    away.update(f"{number:02d}.png" for number in range(25))
    for _ in range(2):
        with pytest.raises(DataError, match="25 of the 40 files .* could not be read, .* Nothing was changed"):
            run(folder, tmp_path / "out", PoolOfOne())
    assert open_cohort(tmp_path / "out").key == before.key
    away.clear()
    assert run(folder, tmp_path / "out", PoolOfOne()).quality.rows == 40


def test_outcomes_that_an_earlier_version_kept_for_good_are_tried_again(tmp_path):
    folder = manifest(tmp_path / "data", many())
    with WorkerPool(1) as pool:
        run(folder, tmp_path / "out", pool)
        path = tmp_path / "out/decoded.csv"
        header, *lines = path.read_text().splitlines()
        spoilt = [",".join([line.split(",")[0], "unreadable", "", "", "0"]) for line in lines]
        path.write_text("\n".join([header, *spoilt]) + "\n")
        assert run(folder, tmp_path / "out", pool).quality.rows == 40


def test_damaged_files_that_outnumber_the_good_ones_are_reported(tmp_path):
    rows = many(8) + [(f"bad{n}.png", f"q{n}", "benign", b"\x89PNG\r\n\x1a\n broken") for n in range(9)]
    (source,) = discover(manifest(tmp_path / "data", rows), study())
    report = ingest(source, study(), tmp_path / "out", KEY, workers=1)
    assert report.lost_most and report.unread == 9 and report.quality.rows == 8
    assert isinstance(PreparedImage().fault, str)
