"""Handles a patient's objection.

What was learned from the patient before the objection stays in the models and in the ledger; it cannot be removed.
`forget` excludes the patient from everything from now on, and removes the images that were prepared from their files.
Source files are never touched.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wardround.errors import DataError
from wardround.storage.atomic import fsync
from wardround.storage.locks import locked, try_locked
from wardround.storage.table import spellings_of_number
from wardround_client.site.paths import CACHE, COHORT, FORGET_LOCK, PULL_LOCK, PULL_MANIFEST, PULLED
from wardround_client.sources.claim import CohortBusyError, claimed_cohort
from wardround_client.sources.cohort import (
    CohortRow,
    open_cohort,
    pseudonym,
    remove_cohort,
    row_hashes,
    write_cohort,
)
from wardround_client.sources.opt_out import enter, opted_out
from wardround_client.sources.registry import all_sources


@dataclass(frozen=True, kw_only=True)
class Forgotten:
    """The result of `forget`.

    Attributes:
        already: Whether the patient had objected before.
        rows_removed: How many prepared images or records were removed.
        similar: Prepared patients whose ID differs only in case, spaces, hyphens or leading zeros.
        earlier_identity: Whether the cohort was prepared when the issuer was part of a patient's identity, so that
            images under another issuer may remain until the next ingest.
    """

    already: bool
    rows_removed: int
    similar: int = 0
    earlier_identity: bool = False


def forget(
    site_folder: Path, key: bytes, patient_id: str, issuer: str = "", record: Callable[[int], object] = int
) -> Forgotten:
    """Add a patient to the list of objections, then remove their prepared images.

    The entry in the list comes first and is durable. Concurrent calls wait for one another. Repeating a call that
    crashed completes it.

    Args:
        site_folder: The site's folder.
        key: The site's own secret, from which pseudonyms are derived.
        patient_id: The patient's id, as in the site's files.
        issuer: The issuer of the patient's id, which was part of the identity in cohorts of earlier versions.
        record: Passed on to `opt_out.enter`.

    Raises:
        DataError: The patient's id is empty, the list cannot be written, or an ingest is running. In the last case the
            patient is in the list.
    """
    if not patient_id.strip(" \0"):
        raise DataError("the patient's ID is empty; give it as in PatientID or in the manifest")
    names = {pseudonym(key, patient_id)} | ({pseudonym(key, patient_id, issuer)} if issuer.strip(" \0") else set())
    new = False
    for name in sorted(names):
        new = enter(site_folder, name, record) or new
    similar, earlier = _unsure(site_folder, key, patient_id)
    try:
        remove_pulled(site_folder)
        removed = _remove_prepared(site_folder, key, names)
    except CohortBusyError:
        raise DataError(
            f"{site_folder}: the patient is on the list of objections, excluded from now on; an ingest or a pull is "
            "running and removes their images when it ends. Run forget again afterwards to confirm this"
        ) from None
    return Forgotten(already=not new, rows_removed=removed, similar=similar, earlier_identity=earlier)


def remove_pulled(site_folder: Path) -> None:
    """Remove what `pull --into cohort` has fetched and prepared; an unfinished pull begins anew.

    Raises:
        CohortBusyError: Such a pull is running.
    """
    folder = site_folder / PULLED
    if not folder.exists() and not (site_folder / PULL_MANIFEST).exists():
        return
    with try_locked(site_folder / PULL_LOCK) as alone:
        if not alone:
            raise CohortBusyError(f"{folder}: a pull is running; wait until it has ended")
        (site_folder / PULL_MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        fsync(site_folder)


def remove_objectors(site_folder: Path, key: bytes) -> int:
    """Remove the prepared images of all patients in the list, and return their number.

    A patient may have objected during an ingest, for example.
    """
    return _remove_prepared(site_folder, key, opted_out(site_folder))


def _unsure(site_folder: Path, key: bytes, patient_id: str) -> tuple[int, bool]:
    """Return the number of prepared patients with a similar ID, and whether the cohort has the earlier identity."""
    try:
        cohort = open_cohort(site_folder / COHORT)
    except DataError:
        return 0, False
    similar = {pseudonym(key, spelling) for spelling in similar_ids(patient_id)} & set(cohort.pseudonyms)
    return len(similar), cohort.earlier_identity


def similar_ids(patient_id: str) -> set[str]:
    """Return other spellings that may mean the same patient: case, spaces, hyphens and leading zeros."""
    text = patient_id.strip(" \0")
    joined = {text, re.sub(r"[\s_-]+", "", text), re.sub(r"[\s_-]+", " ", text)}
    numbers = {spelling for one in joined for spelling in spellings_of_number(one)}
    stripped = {one.lstrip("0") for one in joined}
    every = joined | numbers | stripped
    return {case for one in every if one for case in (one, one.upper(), one.lower())} - {text}


def _remove_prepared(site_folder: Path, key: bytes, names: Collection[str]) -> int:
    if not names or not (site_folder / COHORT).is_dir():
        return 0
    with locked(site_folder / FORGET_LOCK), claimed_cohort(site_folder / COHORT):
        removed = _remove_from_cohort(site_folder / COHORT, key, names)
        remove_features(site_folder / CACHE)  # also if an earlier call was killed before this line
    return removed


def _remove_from_cohort(folder: Path, key: bytes, names: Collection[str]) -> int:
    try:
        cohort = open_cohort(folder)
    except DataError:
        return 0  # no cohort, or a half-written one: it is never opened, and the next ingest replaces it without them
    gone_P = np.array([name in names for name in cohort.pseudonyms], dtype=np.bool_)
    gone_N = gone_P[cohort.patient_N]
    if not gone_N.any():
        return 0
    kept = np.flatnonzero(~gone_N)
    hashes = row_hashes(folder)
    rows = [
        CohortRow(
            pseudonym=cohort.pseudonyms[cohort.patient_N[row]],
            label=int(cohort.labels_N[row]),
            extra={name: column[row] for name, column in cohort.extra.items()},
        )
        for row in kept
    ]
    gone = {hashes[row] for row in np.flatnonzero(gone_N)}
    for source in all_sources():
        source.forget_rows(folder, gone)
    if rows:
        values = (np.asarray(cohort.values_N[row]) for row in kept)
        write_cohort(
            folder,
            rows,
            values,
            row_shape=cohort.values_N.shape[1:],
            dtype=cohort.values_N.dtype,
            label_names=cohort.label_names,
            site_key=key,
            prepared_by=cohort.prepared_by,
            earlier_identity=cohort.earlier_identity,
        )
    else:
        remove_cohort(folder)
    return int(gone_N.sum())


def remove_features(cache: Path) -> None:
    """Remove the cached frozen features.

    They have one row per image, and are recomputed from the new cohort when they are needed.
    """
    if cache.is_dir():
        for path in cache.glob("features-*"):
            path.unlink(missing_ok=True)
        fsync(cache)
