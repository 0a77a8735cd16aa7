"""The list of patients who object: pseudonyms that are kept out of every later cohort and every later draw.

A site reads the list in every round (`site/site.py`) and in every ingest; `forget.py` enters a patient. Who changes the
list holds `.opt_out.lock` from reading it to writing it, so that of two commands at once neither loses the other's
patient.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from wardround.errors import DataError
from wardround.storage.atomic import fsync, write_file
from wardround.storage.locks import locked
from wardround_client.site.paths import OPT_OUT_FILE, OPT_OUT_LOCK
from wardround_client.sources.cohort import Cohort, select_patients


def opted_out(site_folder: Path) -> frozenset[str]:
    """The pseudonyms of all who object. Raises `DataError` where the list cannot be read: nobody is trained on then."""
    path = site_folder / OPT_OUT_FILE
    try:
        lines = path.read_text(encoding="ascii").split()
    except FileNotFoundError:
        return frozenset()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: the list of objections cannot be read ({type(error).__name__}); restore it") from None
    return frozenset(lines)


def enter(site_folder: Path, pseudonym: str, record: Callable[[int], object] = int) -> bool:
    """Enter a patient into the list; whether they were not in it before. Durable on return, whoever else enters one.

    `record` gets the number of all who object, also for a patient who was in the list already: an earlier call may have
    been killed before it. Raises `DataError` where the list cannot be read or written.
    """
    path = site_folder / OPT_OUT_FILE
    try:
        with locked(site_folder / OPT_OUT_LOCK):
            before = opted_out(site_folder)
            after = before | {pseudonym}
            if after == before:
                fsync(site_folder)  # the call that entered them may have been killed before it did
            else:
                write_file(path, "".join(f"{one}\n" for one in sorted(after)).encode())
            record(len(after))
    except OSError as error:
        raise DataError(
            f"{path}: the objection cannot be written ({error.strerror}); see the disk and the file's owner, then call "
            "forget again"
        ) from None
    return after != before


def without_objectors(cohort: Cohort, objectors: frozenset[str]) -> Cohort:
    """The cohort of those who do not object."""
    return select_patients(cohort, np.array([name not in objectors for name in cohort.pseudonyms], dtype=np.bool_))
