"""Hospitals with simulated stays as files, in the layout of long tables (docs/records.md). No patient is in them.

Each hospital after the first has a habit of real exports that ingestion has to undo, so that a run on simulated stays
goes through the whole way.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wardround.errors import DataError
from wardround.phantoms.stays import stays
from wardround.sources.records.vocabulary import Variable, load_vocabulary

MEASUREMENTS_FILE, PATIENTS_FILE = "measurements.csv", "patients.csv"
MEASUREMENT_COLUMNS = ("patient_id", "hours", "variable", "value")
OUTCOME = "in_hospital_death"
OUTCOME_HOURS = "outcome_hours"  # of a death; a study with a horizon needs it
MEAN_HOURS_TO_DEATH = 72.0  # after the simulated hours, beside one hour at least
SITE_SEEDS = 1000  # seeds of one call's sites lie side by side


@dataclass(frozen=True, kw_only=True)
class Habit:
    """How a hospital exports."""

    fahrenheit: bool = False
    ph_without_point: bool = False  # 734 for 7.34
    missing: str = ""  # what stands for a height or a weight that is not known
    separator: str = ","
    comma: bool = False  # 36,5 for 36.5

    def number(self, value: float) -> str:
        """Return a number as text."""
        text = f"{value:.4g}"
        return text.replace(".", ",") if self.comma else text

    def measured(self, variable: Variable, value: float) -> str:
        """Return a measurement as text."""
        if self.fahrenheit and variable.name == "Temp":
            value = value * 1.8 + 32
        if self.ph_without_point and variable.name == "pH":
            value = round(value * 100)
        return self.number(value)

    def fact(self, variable: Variable, value: float) -> str:
        """Return a fact of a stay as the vocabulary's own code or a number."""
        if np.isnan(value):
            return self.missing if variable.missing else ""
        return variable.codes[int(value)] if variable.codes else self.number(value)


HABITS = (
    Habit(),
    Habit(fahrenheit=True),
    Habit(ph_without_point=True, missing="-1"),
    Habit(separator=";", comma=True),
)


def write_simulated_hospitals(
    folder: Path, sites: int, patients: int, seed: int, progress: Callable[[int, int], None] | None = None
) -> None:
    """Write `folder/hospital-1` ... with `patients` stays each. The same arguments give the same files.

    Each site has a table of measurements, in which a value stands somewhere within its hour, and a table of patients
    with the facts of each stay, its outcome, and the hour of a death. `progress(done, total)` counts patients.

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
    variables, habit = load_vocabulary("icu").variables, HABITS[(site - 1) % len(HABITS)]
    names = [f"{site:02}-{number:05}" for number in range(1, len(rows_NTV) + 1)]
    hourly = [(column, one) for column, one in enumerate(variables) if not one.of_the_stay]
    with open(place / MEASUREMENTS_FILE, "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, delimiter=habit.separator)
        writer.writerow(MEASUREMENT_COLUMNS)
        for name, row_TV in zip(names, rows_NTV, strict=True):
            for column, variable in hourly:
                for hour in np.flatnonzero(~np.isnan(row_TV[:, column])):
                    when = f"{hour + random.integers(0, 60) / 60:.4f}"
                    value = habit.measured(variable, float(row_TV[hour, column]))
                    writer.writerow((name, when.replace(".", ",") if habit.comma else when, variable.name, value))
    facts = [(column, one) for column, one in enumerate(variables) if one.of_the_stay]
    with open(place / PATIENTS_FILE, "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, delimiter=habit.separator)
        writer.writerow(("patient_id", *(one.name for _, one in facts), OUTCOME, OUTCOME_HOURS))
        hours_N = rows_NTV.shape[1] + 1 + random.exponential(MEAN_HOURS_TO_DEATH, len(rows_NTV))
        for name, row_TV, died, hours in zip(names, rows_NTV, died_N, hours_N, strict=True):
            cells = [habit.fact(one, float(row_TV[0, column])) for column, one in facts]
            writer.writerow((name, *cells, int(died), habit.number(float(hours)) if died else ""))
