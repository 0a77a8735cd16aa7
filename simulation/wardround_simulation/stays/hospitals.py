"""Hospitals with simulated stays as files, in the layout of long tables (docs/records.md). No patient is in them."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np

from wardround.errors import DataError
from wardround.phantoms.stays import stays
from wardround.sources.records.vocabulary import load_vocabulary

MEASUREMENTS_FILE, PATIENTS_FILE = "measurements.csv", "patients.csv"
MEASUREMENT_COLUMNS = ("patient_id", "hours", "variable", "value")
OUTCOME = "in_hospital_death"
SITE_SEEDS = 1000  # seeds of one call's sites lie side by side


def write_simulated_hospitals(
    folder: Path, sites: int, patients: int, seed: int, progress: Callable[[int, int], None] | None = None
) -> None:
    """Write `folder/hospital-1` ... with `patients` stays each. The same arguments give the same files.

    Each site has a table of measurements, in which a value stands somewhere within its hour, and a table of patients
    with the facts of each stay and its outcome. `progress(done, total)` counts patients.

    Raises:
        DataError: A count is below one, or the folder is not empty.
    """
    if sites < 1 or patients < 1:
        raise DataError("simulated hospitals need at least one site and one patient; give larger numbers")
    if folder.exists() and any(folder.iterdir()):
        raise DataError(f"{folder}: not empty; simulated stays are only written into a new or empty folder")
    for site in range(1, sites + 1):
        rows_NTV, died_N = stays(patients, seed * SITE_SEEDS + site)
        place = folder / f"hospital-{site}"
        place.mkdir(parents=True)
        _write_site(place, site, rows_NTV, died_N, np.random.default_rng(seed * SITE_SEEDS + site))
        if progress is not None:
            progress(site * patients, sites * patients)


def _write_site(place: Path, site: int, rows_NTV: np.ndarray, died_N: np.ndarray, random: np.random.Generator) -> None:
    variables = load_vocabulary("icu").variables
    names = [f"{site:02}-{number:05}" for number in range(1, len(rows_NTV) + 1)]
    hourly = [(column, one) for column, one in enumerate(variables) if not one.of_the_stay]
    with open(place / MEASUREMENTS_FILE, "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(MEASUREMENT_COLUMNS)
        for name, row_TV in zip(names, rows_NTV, strict=True):
            for column, variable in hourly:
                for hour in np.flatnonzero(~np.isnan(row_TV[:, column])):
                    minutes = random.integers(0, 60)
                    writer.writerow((name, f"{hour + minutes / 60:.4f}", variable.name, f"{row_TV[hour, column]:.4g}"))
    facts = [(column, one) for column, one in enumerate(variables) if one.of_the_stay]
    with open(place / PATIENTS_FILE, "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(("patient_id", *(one.name for _, one in facts), OUTCOME))
        for name, row_TV, died in zip(names, rows_NTV, died_N, strict=True):
            cells = [_cell(row_TV[0, column], one.codes) for column, one in facts]
            writer.writerow((name, *cells, int(died)))


def _cell(value: float, codes: tuple[str, ...]) -> str:
    """A fact of a stay as the vocabulary's own code or number; empty if it is not known."""
    if np.isnan(value):
        return ""
    return codes[int(value)] if codes else f"{value:.4g}"
