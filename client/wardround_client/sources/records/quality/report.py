"""The quality report of records: `quality.json` and `quality.html` without ids, and `quarantine.csv` with them.

The reports identify a patient by a short keyed reference. Only `quarantine.csv`, which is readable by its owner alone,
maps a reference to the patient's id in the files.
"""

from __future__ import annotations

import csv
import io
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from wardround.sources.records.vocabulary import Vocabulary
from wardround.storage.atomic import write_file
from wardround.storage.table import spreadsheet_cell
from wardround_client.sources.keyed import keyed
from wardround_client.sources.quality import Quality, quality_page
from wardround_client.sources.records.quality.counts import NO_PATIENT, NO_VARIABLE, Counts
from wardround_client.sources.records.quality.reasons import REASONS
from wardround_client.sources.records.source import REPORT_PAGE

REPORT_JSON, QUARANTINE = "quality.json", "quarantine.csv"
SHOWN_REFERENCES = 200  # per reason in the HTML
MOST_FINDINGS = 10_000  # in the JSON; the CSV has more


@dataclass(frozen=True, kw_only=True)
class VariableFigures:
    """What was measured of one variable, in a site's accepted patients."""

    name: str
    title: str
    unit: str
    patients: int  # with at least one value
    hours: int  # of all patients, in which there is a value
    reasons: dict[str, int]  # reason code -> number of values

    def to_json(self) -> dict:
        """Return plain values for `quality.json`."""
        return {"name": self.name, "patients": self.patients, "hours": self.hours, "reasons": self.reasons}


def write_quality(
    folder: Path,
    quality: Quality,
    counts: Counts,
    variables: Sequence[VariableFigures],
    ids: Sequence[str],
    key: bytes,
) -> None:
    """Write the three files. `ids` are the patients to which the lines of `counts` refer by index."""
    names = [figures.name for figures in variables]
    lines = [
        {
            "reference": "" if line.patient == NO_PATIENT else keyed(key, "patient", ids[line.patient])[:10],
            "code": line.code,
            "variable": "" if line.variable == NO_VARIABLE else names[line.variable],
            "count": line.count,
        }
        for line in counts.lines()
    ]
    content = {
        **quality.to_json(),
        "variables": [figures.to_json() for figures in variables],
        "findings": lines[:MOST_FINDINGS],
    }
    write_file(folder / REPORT_JSON, json.dumps(content, indent=1).encode())
    write_file(folder / REPORT_PAGE, _html(quality, variables, lines).encode())
    write_file(folder / QUARANTINE, _ids_csv(counts, lines, ids).encode("utf-8", "backslashreplace"), mode=0o600)


def figures_of(vocabulary: Vocabulary, counts: Counts, patients_V: Sequence[int], hours_V: Sequence[int]) -> list:
    """Return the figures of each variable, in the vocabulary's order."""
    reasons: dict[int, dict[str, int]] = defaultdict(dict)
    for (variable, code), count in sorted(counts.of_variable.items()):
        reasons[variable][code] = count
    return [
        VariableFigures(
            name=variable.name,
            title=variable.title,
            unit=variable.unit,
            patients=int(patients_V[index]),
            hours=int(hours_V[index]),
            reasons=reasons[index],
        )
        for index, variable in enumerate(vocabulary.variables)
    ]


def _ids_csv(counts: Counts, lines: Sequence[dict], ids: Sequence[str]) -> str:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("reference", "patient_id", "code", "variable", "count", "reason", "advice"))
    for line, entry in zip(counts.lines(), lines, strict=True):
        reason = REASONS[line.code]
        patient = "" if line.patient == NO_PATIENT else ids[line.patient]
        cells = (entry["reference"], patient, line.code, entry["variable"], line.count, reason.title, reason.advice)
        writer.writerow(map(spreadsheet_cell, cells))
    reason = REASONS["unknown_variable"]
    for name, count in counts.unknown_names.most_common():
        writer.writerow(("", "", "unknown_variable", spreadsheet_cell(name), count, reason.title, reason.advice))
    return text.getvalue()


def _html(quality: Quality, variables: Sequence[VariableFigures], lines: Sequence[dict]) -> str:
    references: dict[str, list[str]] = defaultdict(list)
    for line in lines:
        if line["reference"]:
            references[line["code"]].append(" · ".join(filter(None, (line["reference"], line["variable"]))))
    return quality_page(
        Path(__file__).with_name("quality.html.j2"),
        quality,
        REASONS,
        variables=variables,
        references=references,
        shown=SHOWN_REFERENCES,
        quarantine_file=QUARANTINE,
    )
