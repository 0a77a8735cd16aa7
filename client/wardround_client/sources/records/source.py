"""Patients' records as a source of data: what a study asks of them, and whether a prepared cohort answers it.

See `sources/registry.py` for who calls these functions.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from wardround.sources.records.study import RecordsData
from wardround.sources.records.vocabulary import load_vocabulary
from wardround_client.sources.cohort import Cohort

SHOWS_IMAGES = False
PREPARATION_VERSION = 1  # increase it when the same records would give different rows


def row_shape(data: RecordsData) -> tuple[int, int]:
    """Return the shape of one row: hours and variables."""
    return data.row_shape


def row_dtype(data: RecordsData) -> Any:
    """Return the dtype of a row, float32; NaN where nothing was measured."""
    return np.float32


def prepared_by(data: RecordsData) -> str:
    """Return everything besides the records that determines the rows: version, vocabulary and hours, as JSON."""
    settings = {
        "preparation": PREPARATION_VERSION,
        "vocabulary": load_vocabulary(data.vocabulary).sha256,
        "window_hours": data.window_hours,
    }
    return json.dumps(settings, sort_keys=True)


def fits(cohort: Cohort, data: RecordsData) -> bool:
    """Return whether the cohort's rows have the variables and hours that a study asks for."""
    return cohort.prepared_by == prepared_by(data) and cohort.values_N.shape[1:] == row_shape(data)


def differences(cohort: Cohort, data: RecordsData) -> list[str]:
    """Return how the cohort's rows differ from those that a study asks for, one line each."""
    if fits(cohort, data):
        return []
    return ["the data were prepared with another vocabulary or other hours: no patient takes part; run ingest again"]


def forget_rows(folder: Path, hashes: Collection[str]) -> None:
    """Do nothing: beside the cohort, no file in its folder holds a patient's values."""
