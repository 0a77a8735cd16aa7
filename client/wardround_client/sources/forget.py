"""Forgetting a patient who objects.

What was learned before stays in the models and in the ledger; nothing can take it out. So `forget` does what can be
done: the patient takes part in nothing from now on, and what was prepared of their images here is removed. Source
files are never touched.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wardround.errors import DataError
from wardround.storage.atomic import fsync
from wardround.storage.locks import locked
from wardround_client.site.paths import CACHE, COHORT, FORGET_LOCK
from wardround_client.sources.cohort import (
    TABLE_FILE,
    CohortRow,
    open_cohort,
    pseudonym,
    remove_cohort,
    write_cohort,
)
from wardround_client.sources.images.decoded_cache import DECODED_FILE, forget_pixels
from wardround_client.sources.ingest import CohortBusyError, claimed_cohort
from wardround_client.sources.opt_out import enter, opted_out


@dataclass(frozen=True, kw_only=True)
class Forgotten:
    """What `forget` did: whether the patient had objected before, and how many prepared images it removed."""

    already: bool
    images_removed: int


def forget(
    site_folder: Path, key: bytes, patient_id: str, issuer: str = "", record: Callable[[int], object] = int
) -> Forgotten:
    """Enter a patient into the list, durably and first of all; then remove what was prepared of them.

    `key` is the site's own, `patient_id` and `issuer` as in its files; `record` as for `opt_out.enter`. Several calls
    at once wait for one another; asked again after a crash it finishes what is left. Raises `DataError` for an empty
    patient id, where the list cannot be written, and while an ingest is at work: then the patient is in the list.
    """
    if not patient_id.strip(" \0"):
        raise DataError("the patient's id is empty; give it as it stands in PatientID or in the manifest")
    name = pseudonym(key, patient_id, issuer)
    new = enter(site_folder, name, record)
    try:
        removed = _remove_prepared(site_folder, key, {name})
    except CohortBusyError:
        raise DataError(
            f"{site_folder}: the patient is in the list and takes part in nothing from now on; an ingest is at work, "
            "which removes their images at its end. Call forget again after it, to see that it did"
        ) from None
    return Forgotten(already=not new, images_removed=removed)


def remove_objectors(site_folder: Path, key: bytes) -> int:
    """Remove what is prepared of patients in the list, such as one who objected during an ingest; how many images."""
    return _remove_prepared(site_folder, key, opted_out(site_folder))


def _remove_prepared(site_folder: Path, key: bytes, names: Collection[str]) -> int:
    if not names or not (site_folder / COHORT).is_dir():
        return 0
    with locked(site_folder / FORGET_LOCK), claimed_cohort(site_folder / COHORT):
        removed = _remove_from_cohort(site_folder / COHORT, key, names)
        remove_features(site_folder / CACHE)  # also where an earlier call was killed before this line
    return removed


def _remove_from_cohort(folder: Path, key: bytes, names: Collection[str]) -> int:
    try:
        cohort = open_cohort(folder)
    except DataError:
        return 0  # none, or a half-written one, which no one opens and the next ingest writes anew without them
    gone_P = np.array([name in names for name in cohort.pseudonyms], dtype=np.bool_)
    gone_N = gone_P[cohort.patient_N]
    if not gone_N.any():
        return 0
    kept = np.flatnonzero(~gone_N)
    with open(folder / TABLE_FILE, newline="") as file:
        hashes = [line["pixels_sha256"] for line in csv.DictReader(file)]
    rows = [
        CohortRow(
            pseudonym=cohort.pseudonyms[cohort.patient_N[row]],
            label=int(cohort.labels_N[row]),
            hu=bool(cohort.hu_N[row]),
        )
        for row in kept
    ]
    forget_pixels(folder / DECODED_FILE, {hashes[row] for row in np.flatnonzero(gone_N)})
    if rows:
        images = (np.asarray(cohort.images_NCHW[row]) for row in kept)
        write_cohort(
            folder,
            rows,
            images,
            shape_CHW=cohort.images_NCHW.shape[1:],
            label_names=cohort.label_names,
            site_key=key,
            prepared_by=cohort.prepared_by,
        )
    else:
        remove_cohort(folder)
    return int(gone_N.sum())


def remove_features(cache: Path) -> None:
    """Frozen features hold a row for each image; they are made again from the new cohort when they are needed."""
    if cache.is_dir():
        for path in cache.glob("features-*"):
            path.unlink(missing_ok=True)
        fsync(cache)
