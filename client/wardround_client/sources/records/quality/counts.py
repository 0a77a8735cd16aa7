"""Counts what was repaired, put aside or left out, by reason, by variable and, for the hospital alone, by patient."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

MOST_LINES = 100_000  # of quarantine.csv
MOST_NAMES = 1_000  # different names of unknown variables that are kept; all are counted
LONGEST_NAME = 80
NO_VARIABLE = -1
NO_PATIENT = -1


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of quarantine.csv: how often a reason occurred for a patient and a variable."""

    code: str
    patient: int  # index into the stays; NO_PATIENT: of the whole site
    variable: int  # index into the vocabulary; NO_VARIABLE: of the whole stay
    count: int


class Counts:
    """The counts of one site while it is read. Memory is bounded, whatever the number of rows."""

    def __init__(self) -> None:
        self.of_reason: Counter[str] = Counter()
        self.of_variable: Counter[tuple[int, str]] = Counter()
        self.unknown_names: Counter[str] = Counter()  # as written in the files; only quarantine.csv shows them
        self._lines: Counter[tuple[str, int, int]] = Counter()

    def add(self, code: str, count: int = 1) -> None:
        """Count a reason that concerns no single patient."""
        if count:
            self.of_reason[code] += count

    def add_rows(self, code: str, patients_N: np.ndarray, variables_N: np.ndarray | None = None) -> None:
        """Count a reason once for each row, by its patient and variable (indices)."""
        if not len(patients_N):
            return
        self.of_reason[code] += len(patients_N)
        if variables_N is None:
            variables_N = np.full(len(patients_N), NO_VARIABLE)
        pairs, counts = np.unique(
            np.stack([patients_N.astype(np.int64), variables_N.astype(np.int64)]), axis=1, return_counts=True
        )
        for variable in np.unique(pairs[1]):
            if variable != NO_VARIABLE:
                self.of_variable[int(variable), code] += int(counts[pairs[1] == variable].sum())
        for patient, variable, count in zip(*pairs.tolist(), counts.tolist(), strict=True):
            key = (code, patient, variable)
            if len(self._lines) < MOST_LINES or key in self._lines:
                self._lines[key] += count

    def add_variable(self, code: str, variable: int, count: int) -> None:
        """Count a reason that concerns one variable, and no known patient."""
        if count:
            self.of_reason[code] += count
            self.of_variable[variable, code] += count

    def add_unknown(self, name: str, count: int) -> None:
        """Count rows of a variable that is not in the vocabulary."""
        self.of_reason["unknown_variable"] += count
        name = name[:LONGEST_NAME]
        if len(self.unknown_names) < MOST_NAMES or name in self.unknown_names:
            self.unknown_names[name] += count

    def lines(self) -> list[Line]:
        """Return the counts by patient and variable, in a fixed order."""
        return [
            Line(code=code, patient=patient, variable=variable, count=count)
            for (code, patient, variable), count in sorted(self._lines.items())
        ]
