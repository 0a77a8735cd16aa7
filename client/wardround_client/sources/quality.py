"""What the quality gate of a source found at a site: numbers and reason codes, nothing that can name a patient."""

from __future__ import annotations

from dataclasses import dataclass


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
