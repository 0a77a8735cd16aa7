"""What the quality gate of a source found at a site: numbers and reason codes, nothing that can name a patient.

A reason is a code for programs, a title and advice for people. Each source has its own in `quality/reasons.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    """The findings at a site. `row` is what a row of the cohort is: "image" or "stay".

    `accounted` says what became of each file (of images) or patient (of records): `used`, `put_aside` or `left_out` by
    the study. The numbers add up to all that were examined, which the counts of reasons need not do: a file with
    several images can have several reasons.
    """

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
    accounted: dict[str, int] | None = None

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
            **({} if self.accounted is None else {"accounted": self.accounted}),
        }


def by_weight(counts: Mapping[str, int], reasons: Mapping[str, Reason]) -> list[tuple[str, int]]:
    """Sort counts by reason: errors first, then by descending count."""
    return sorted(counts.items(), key=lambda item: (not reasons[item[0]].error, -item[1], item[0]))


def not_used_by_reason(
    quality: Quality, reasons: Mapping[str, Reason], left_out: Collection[str]
) -> list[tuple[str, str, int]]:
    """Return code, text and number of what was put aside, then of what was left out, most important first."""
    remarks = {code: count for code, count in quality.remarks.items() if code in left_out}

    def lines(says: str, counts: Mapping[str, int]) -> list[tuple[str, str, int]]:
        titles = ((code, reasons[code].title, count) for code, count in by_weight(counts, reasons))
        return [(code, f"{says}: {title[0].lower()}{title[1:]}", count) for code, title, count in titles]

    return [*lines("put aside", quality.quarantined), *lines("left out", remarks)]


def quality_page(template: Path, quality: Quality, reasons: Mapping[str, Reason], **content: Any) -> str:
    """Return the quality report as a page, from a source's template. Every value is escaped."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template.read_text(encoding="utf-8")).render(
        quality=quality,
        reasons=reasons,
        quarantined=by_weight(quality.quarantined, reasons),
        remarks=by_weight(quality.remarks, reasons),
        most=max((figures[f"{quality.row}s"] for figures in quality.classes.values()), default=0),
        **content,
    )
