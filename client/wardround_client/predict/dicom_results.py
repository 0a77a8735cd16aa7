"""Writes a call's predictions as DICOM: a structured report for each examination, and a picture for each prediction.

Only the headers of the source files are read again, and only to repeat whose examination it is and to refer to its
images. Sources that are not DICOM have no report.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from pydicom import Dataset

from wardround_client.predict.predict import Group, Predicted, PredictedImage
from wardround_client.predict.results import UNKNOWN, model_facts
from wardround_client.predict.secondary_capture import picture, secondary_capture
from wardround_client.predict.source_header import source_header
from wardround_client.predict.structured_report import Finding, new_series_uid, structured_report


def write_dicom_results(folder: Path, found: Predicted) -> tuple[list[Path], int]:
    """Write report-N.dcm and picture-N.dcm to an existing folder.

    There is a report for each examination, with a finding for each lesion, or for the patient if none is marked.

    Returns:
        The paths, and the number of lesions or patients without a result: their header identifies no examination, or
        contains something that a report cannot repeat. Sources that are not DICOM do not count.
    """
    facts = model_facts(found)
    model, version = f"Wardround {facts['run']}", facts["sha256"][:16]
    series_uid, pictures_uid = new_series_uid(), new_series_uid()
    examinations: dict[str, list[tuple[Group, Finding]]] = defaultdict(list)
    groups = [one for one in found.nodules or found.patients if any(member.image.is_dicom for member in one.members)]
    left_out = 0
    for group in groups:
        findings = _findings(group)
        left_out += not findings
        for study_uid, finding in findings:
            examinations[study_uid].append((group, finding))
    written: list[Path] = []
    drawn = 0
    for number, those in enumerate(examinations.values(), 1):
        try:
            report = structured_report(
                [finding for _, finding in those], found.rules.labels, model, version, series_uid, number
            )
            pictures = []
            for group, finding in those:
                if group.prediction is not None:
                    drawn += 1
                    shown = picture(group.strongest.image.pixels_CHW[0], [finding.name, *_statement(group, found)])
                    pictures.append(secondary_capture(finding.sources[0][0], shown, pictures_uid, drawn, model))
        except Exception:  # highdicom raises errors of many types for what the standard forbids in a header
            left_out += len(those)
            continue
        written.append(_save(report, folder / f"report-{number}.dcm"))
        written += [_save(one, folder / f"picture-{one.InstanceNumber}.dcm") for one in pictures]
    return written, left_out


def _findings(group: Group) -> list[tuple[str, Finding]]:
    """Return the finding of a group for each examination of its images; none if no header identifies one."""
    members = group.of or group.members
    by_study: dict[str, list[tuple[PredictedImage, Dataset]]] = defaultdict(list)
    for one in sorted(members, key=lambda one: -one.prediction.logits[-1] if one.prediction else 0.0):
        header = source_header(one.image.path) if one.image.is_dicom else None
        if header is not None:
            by_study[str(header.StudyInstanceUID)].append((one, header))
    name = f"Patient {group.patient}" if group.nodule is None else f"Nodule of row {group.nodule}"
    return [
        (
            study_uid,
            Finding(
                name=name,
                sources=[(header, one.image.frame) for one, header in those],
                mark_xy=those[0][0].image.mark_xy if group.nodule is not None else None,
                prediction=group.prediction,
            ),
        )
        for study_uid, those in by_study.items()
    ]


def _statement(group: Group, found: Predicted) -> list[str]:
    prediction = group.prediction
    if prediction is None:
        return [f"Refused: {UNKNOWN}"]
    lines = [
        f"{label}: {value:.0%}"
        for label, value in list(zip(found.rules.labels, prediction.probabilities, strict=True))[-1:]
    ]
    if prediction.interval is not None and prediction.label_set is not None:
        lines.append("95 % interval of the calibration: {:.0%} to {:.0%}".format(*prediction.interval))
        lines.append(f"May be: {' or '.join(prediction.label_set)}")
    else:
        lines.append("Not calibrated")
    lines += [
        f"At {one.point.specificity:.0%} specificity: {'positive' if one.positive else 'negative'}"
        for one in prediction.decisions
    ]
    facts = model_facts(found)
    return [*lines, f"Model {facts['run']}, epsilon {facts['epsilon']}"]


def _save(made: Dataset, path: Path) -> Path:
    with open(path, "xb") as file:
        made.save_as(file, enforce_file_format=True)
    return path
