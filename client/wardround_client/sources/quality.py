"""What the quality gate of a source found at a site: numbers and reason codes, nothing that can name a patient.

A reason is a code for programs, a title and advice for people. Each source has its own in `quality/reasons.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

FEW_PATIENTS = 10  # a class with fewer patients gets the remark "few_of_class"


@dataclass(frozen=True, kw_only=True)
class Reason:
    """One reason. A `fault` excludes data from the cohort (quarantine); any other reason is a remark."""

    title: str
    advice: str
    fault: bool = True
    error: bool = False  # someone must resolve it to protect a patient; listed first


@dataclass(frozen=True, kw_only=True)
class Quality:
    """The findings at a site. `row` is what a row of the cohort is: "image" or "stay"."""

    site: str
    files: int
    rows: int
    patients: int
    classes: dict[str, dict[str, int]]  # label -> rows (under the source's name for them) and patients
    unlabelled: int
    quarantined: dict[str, int]  # reason code -> number of files, rows or values
    remarks: dict[str, int]
    notes: tuple[str, ...]
    row: str = "image"

    def to_json(self) -> dict:
        """Return plain values for `quality.json` and a run's report."""
        return {
            "schema": 1,
            "site": self.site,
            "files": self.files,
            f"{self.row}s": self.rows,
            "patients": self.patients,
            "classes": self.classes,
            "unlabelled": self.unlabelled,
            "quarantined": self.quarantined,
            "remarks": self.remarks,
            "notes": list(self.notes),
        }
