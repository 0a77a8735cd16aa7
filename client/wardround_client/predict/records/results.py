"""The results of an early warning as JSON, as CSV, as a table for a terminal, and as one picture for each patient."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wardround.printable import escaped
from wardround.storage.table import spreadsheet_cell
from wardround.tasks.early_warning.explanation import RiskParts, VariablePart
from wardround.text import count_text, epsilon_text
from wardround_client.predict.predict import NOTICE
from wardround_client.predict.records.picture import picture
from wardround_client.predict.records.predict import PatientRisk, Warned, risk_text

SCHEMA = 1
TOLD_PARTS = 3  # of a patient's variables in the table for a terminal
MOST_PICTURES = 200


def to_json(found: Warned) -> dict[str, Any]:
    """Return everything as plain values. The ids are those of the files that were read."""
    study = found.package.study
    return {
        "schema": SCHEMA,
        "notice": NOTICE,
        "model": {
            "run": found.package.content["run"],
            "study": study.study.name,
            "study_sha256": found.package.content["study_sha256"],
            "epsilon": epsilon_text(study.privacy.epsilon),
            "outcome": study.data.labels[1],
            "calibration": found.calibration,
            "intercept": found.shift,
            "unsafe": found.package.content["unsafe"],
        },
        "patients": [_patient(one) for one in found.patients],
        "not_used": dict(found.not_used),
    }


def _patient(one: PatientRisk) -> dict[str, Any]:
    return {
        "patient": one.patient,
        "refused": one.refused,
        "risk": one.risk,
        "risk_by_hour": [{"hours": hours, "risk": risk} for hours, risk in one.risks],
        "explanation": None if one.parts is None else _parts(one.parts),
        "missing": list(one.missing),
    }


def _parts(found: RiskParts) -> dict[str, Any]:
    return {
        "method": found.method,
        "logit": found.logit,
        "rest": found.rest,
        "error": found.error,
        "parts": [{"variable": one.variable, "part": one.part, "measured": one.said} for one in found.parts],
    }


def to_csv(found: Warned) -> str:
    """Return one line for each patient."""
    written = io.StringIO()
    table = csv.writer(written, lineterminator="\n")
    table.writerow(("patient", "risk", "refused", "raises", "lowers", "missing"))
    for one in found.patients:
        raising, lowering = strongest(one, TOLD_PARTS)
        risk = "" if one.risk is None else f"{one.risk:.4f}"
        cells = (one.patient, risk, one.refused or "", _names(raising), _names(lowering), "; ".join(one.missing))
        table.writerow([spreadsheet_cell(text) for text in cells])
    return written.getvalue()


def strongest(one: PatientRisk, count: int) -> tuple[list[VariablePart], list[VariablePart]]:
    """The variables that raise a patient's risk most, and those that lower it most."""
    parts = () if one.parts is None else one.parts.parts
    raising = [part for part in parts if part.part > 0][:count]
    return raising, [part for part in parts if part.part < 0][:count]


def _names(parts: Sequence[VariablePart]) -> str:
    return "; ".join(f"{part.title} ({part.said})" for part in parts)


def table_of(found: Warned) -> tuple[list[str], list[list[str]]]:
    """Return the columns and rows of the table for a terminal, the highest risk first."""
    rows = []
    for one in found.patients:
        name = escaped(one.patient)
        if one.risk is None:
            rows.append([name, "refused", one.refused or "", ""])
            continue
        raising, lowering = strongest(one, TOLD_PARTS)
        rows.append([name, risk_text(one.risk), _titles(raising), _titles(lowering)])
    return ["patient", f"risk of {found.package.study.data.labels[1]}", "raised by", "lowered by"], rows


def _titles(parts: Sequence[VariablePart]) -> str:
    return ", ".join(part.title for part in parts)


def summary_lines(found: Warned) -> list[str]:
    """Return the lines below the table."""
    lines = []
    if found.calibration != "none":
        whose = {"site": "this site", "federation": "the federation"}[found.calibration]
        lines.append(f"Risks are calibrated: noised counts of {whose} shift all logits by {found.shift:+.2f}.")
    else:
        lines.append(
            "Not calibrated: the sites of this study released no figures. Privacy makes risks too low; compare "
            "patients with each other, not with a share of events."
        )
    refused = sum(one.refused is not None for one in found.patients)
    if refused:
        lines.append(f"{count_text(refused, 'patient')} of {len(found.patients)} refused: too little is known.")
    lines += [f"{count} not used: {title}" for title, count in found.not_used.items()]
    if found.package.content["unsafe"]:
        lines.append("UNSAFE EXPORT: this model was exported although the privacy check did not pass; see its card.")
    return [*lines, NOTICE]


def write_results(folder: Path, found: Warned) -> list[Path]:
    """Write predictions.json, predictions.csv and a picture for each patient to an existing folder."""
    written = {
        folder / "predictions.json": json.dumps(to_json(found), indent=1) + "\n",
        folder / "predictions.csv": to_csv(found),
    }
    shown = [one for one in found.patients if one.parts is not None][:MOST_PICTURES]
    for number, one in enumerate(shown, 1):
        written[folder / f"patient-{number:03}.svg"] = picture(one, found)
    for path, text in written.items():
        with open(path, "x", encoding="utf-8", newline="") as file:
            file.write(text)
    return list(written)
