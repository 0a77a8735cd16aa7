"""The quality report: `quality.json` and `quality.html` without paths, and `quarantine.csv` with the paths.

A file's path may contain a patient's name, so the reports identify a file by a short keyed reference. Only
`quarantine.csv`, which is readable by its owner alone, maps a reference to its path.
"""

from __future__ import annotations

import csv
import io
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from wardround.storage.atomic import write_file
from wardround.storage.table import spreadsheet_cell
from wardround.storage.text_file import path_text
from wardround_client.sources.images.quality.reasons import REASONS
from wardround_client.sources.images.source import REPORT_PAGE
from wardround_client.sources.images.stages import Finding
from wardround_client.sources.keyed import keyed
from wardround_client.sources.quality import Quality, quality_page

REPORT_JSON, QUARANTINE = "quality.json", "quarantine.csv"
SHOWN_REFERENCES = 200  # per reason in the HTML; the JSON and the CSV contain all of them


def reference(key: bytes, path: Path) -> str:
    """Return a short reference to a file that reveals nothing about it: ten hex digits of a keyed hash of its path."""
    return keyed(key, "file", path.as_posix())[:10]


def write_quality(
    folder: Path, quality: Quality, findings: Sequence[Finding], paths: Sequence[Path], key: bytes
) -> None:
    """Write the three files. `paths` are the site's files, relative to its folder; findings refer to them by index."""
    entries = [
        {
            "reference": "" if finding.file is None else reference(key, paths[finding.file]),
            "code": finding.code,
            "place": finding.place,
        }
        for finding in findings
    ]
    content = {**quality.to_json(), "findings": entries}
    write_file(folder / REPORT_JSON, json.dumps(content, indent=1).encode())
    write_file(folder / REPORT_PAGE, _html(quality, entries).encode())
    write_file(
        folder / QUARANTINE, _paths_csv(findings, entries, paths).encode("utf-8", "backslashreplace"), mode=0o600
    )


def _paths_csv(findings: Sequence[Finding], entries: list[dict], paths: Sequence[Path]) -> str:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("reference", "path", "code", "place", "reason", "advice"))
    for finding, entry in zip(findings, entries, strict=True):
        if finding.file is not None:
            reason = REASONS[finding.code]
            path = path_text(paths[finding.file])
            cells = (entry["reference"], path, finding.code, finding.place, reason.title, reason.advice)
            writer.writerow(map(spreadsheet_cell, cells))
    return text.getvalue()


def _html(quality: Quality, entries: list[dict]) -> str:
    references: dict[str, list[str]] = defaultdict(list)
    for entry in entries:
        if entry["reference"]:
            references[entry["code"]].append(" · ".join(filter(None, (entry["reference"], entry["place"]))))
    return quality_page(
        Path(__file__).with_name("quality.html.j2"),
        quality,
        REASONS,
        references=references,
        shown=SHOWN_REFERENCES,
        quarantine_file=QUARANTINE,
    )
