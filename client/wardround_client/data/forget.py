"""Forgetting a patient who objects.

What was learned before stays in the models and in the ledger; nothing can take it out. So `forget` does what can be
done: the patient takes part in nothing from now on, and what was prepared of their images here is removed. Source
files are never touched.
"""

from __future__ import annotations

import csv
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wardround.errors import DataError
from wardround_client.data.cohort import (
    TABLE_FILE,
    CohortRow,
    open_cohort,
    pseudonym,
    remove_cohort,
    sync_folder,
    write_atomically,
    write_cohort,
)
from wardround_client.data.ingest import claimed_cohort
from wardround_client.data.memory import DECODED_FILE, forget_pixels
from wardround_client.data.opt_out import OPT_OUT_FILE, opted_out


@dataclass(frozen=True, kw_only=True)
class Forgotten:
    """What `forget` did: whether the patient had objected before, and how many prepared images it removed."""

    already: bool
    images_removed: int


def forget(site_folder: Path, key: bytes, patient_id: str, issuer: str = "") -> Forgotten:
    """Enter a patient into the list, durably and first of all; then remove what was prepared of them.

    `key` is the site's own, `patient_id` and `issuer` as in its files. Asked again after a crash it finishes what is
    left. Raises `DataError` for an empty patient id, and while an ingest is at work.
    """
    if not patient_id.strip(" \0"):
        raise DataError("the patient's id is empty; give it as it stands in PatientID or in the manifest")
    name, before = pseudonym(key, patient_id, issuer), opted_out(site_folder)
    if name not in before:
        lines = "".join(f"{one}\n" for one in sorted(before | {name}))
        write_atomically(site_folder / OPT_OUT_FILE, lines.encode())
    removed = 0
    if (site_folder / "cohort").is_dir():
        with claimed_cohort(site_folder / "cohort"):
            removed = _remove_prepared(site_folder, key, name)
    return Forgotten(already=name in before, images_removed=removed)


def _remove_prepared(site_folder: Path, key: bytes, name: str) -> int:
    folder = site_folder / "cohort"
    try:
        cohort = open_cohort(folder)
    except DataError:
        return 0  # none, or a half-written one, which no one opens and the next ingest writes anew without them
    if name not in cohort.pseudonyms:
        return 0
    gone_N = cohort.patient_N == cohort.pseudonyms.index(name)
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
    _remove_features(site_folder / "cache")
    return int(gone_N.sum())


def _remove_features(cache: Path) -> None:
    """Frozen features hold a row for each image; they are made again from the new cohort when they are needed."""
    if cache.is_dir():
        for path in cache.glob("features-*"):
            os.unlink(path)
        sync_folder(cache)
