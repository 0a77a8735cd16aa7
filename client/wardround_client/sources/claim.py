"""One ingest at a time in a cohort's folder, and clear errors of its disk."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from wardround.errors import DataError
from wardround.storage.disk_errors import FULL, unwritable
from wardround.storage.folders import make_folder
from wardround.storage.locks import try_locked

SPARE_BYTES = 64 * 2**20  # in addition to the arrays: tables, reports, and some free space for other programs
LOCK_FILE = ".ingest.lock"


class CohortBusyError(DataError):
    """Another ingest is running in the folder."""


@contextmanager
def claimed_cohort(folder: Path) -> Iterator[None]:
    """Lock the cohort folder for one ingest, and turn errors of the disk into a one-line `DataError`."""
    with ExitStack() as stack:
        try:
            make_folder(folder)
            alone = stack.enter_context(try_locked(folder / LOCK_FILE))
        except OSError as error:
            raise DataError(str(unwritable(folder, error))) from None
        if not alone:
            raise CohortBusyError(f"{folder}: another ingest is running in this folder; wait until it has finished")
        try:
            yield
        except OSError as error:
            if error.errno not in (*FULL, errno.EROFS):
                raise
            raise DataError(f"{unwritable(folder, error)}; then run ingest again") from None


def refuse_full_disk(folder: Path, rows: int, row_bytes: int) -> None:
    """Refuse to continue if the disk is too full.

    For a moment the rows are on disk twice: once in the order in which they were made, and once in the cohort's.

    Raises:
        DataError: The disk has not enough free space.
    """
    needed = 2 * rows * row_bytes + SPARE_BYTES
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(
            f"{folder}: {rows} rows need {needed / 1e9:.1f} GB on this disk, but only {free / 1e9:.1f} GB are free;"
            " make room or choose another folder"
        )
