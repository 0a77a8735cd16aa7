"""The list of patients who object, stored as pseudonyms that are excluded from every later cohort and every later draw.

A site reads the list in every round (`site/site.py`) and in every ingest; `forget.py` adds a patient to it. A process
that changes the list holds `.opt_out.lock` from reading the list until it is written, so that two concurrent commands
cannot overwrite each other's entry.
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
    """Return the pseudonyms of all patients who object.

    Raises:
        DataError: The list cannot be read. No patient is trained on in that case.
    """
    path = site_folder / OPT_OUT_FILE
    try:
        lines = path.read_text(encoding="ascii").split()
    except FileNotFoundError:
        return frozenset()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: the list of objections cannot be read ({type(error).__name__}); restore it") from None
    return frozenset(lines)


def enter(site_folder: Path, pseudonym: str, record: Callable[[int], object] = int) -> bool:
    """Add a patient to the list.

    The change is durable on return, also when other processes add patients at the same time.

    Args:
        site_folder: The site's folder.
        pseudonym: The pseudonym of the patient who objects.
        record: Called with the number of all patients who object. It is also called for a patient who was already in
            the list, because an earlier call may have been killed before it called `record`.

    Returns:
        True if the patient was not in the list before.

    Raises:
        DataError: The list cannot be read or written.
    """
    path = site_folder / OPT_OUT_FILE
    try:
        with locked(site_folder / OPT_OUT_LOCK):
            before = opted_out(site_folder)
            after = before | {pseudonym}
            if after == before:
                fsync(site_folder)  # the call that added the patient may have been killed before its fsync
            else:
                write_file(path, "".join(f"{one}\n" for one in sorted(after)).encode())
            record(len(after))
    except OSError as error:
        raise DataError(
            f"{path}: the objection cannot be written ({error.strerror}); check the disk and the file's owner, then "
            "run forget again"
        ) from None
    return after != before


def without_objectors(cohort: Cohort, objectors: frozenset[str]) -> Cohort:
    """Return the cohort without the patients who object."""
    return select_patients(cohort, np.array([name not in objectors for name in cohort.pseudonyms], dtype=np.bool_))
