"""The results of a prediction as JSON, as CSV and as tables for a terminal."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from wardround.storage.table import spreadsheet_cell
from wardround.storage.text_file import path_text
from wardround.tasks.classification.predict import Prediction
from wardround.text import epsilon_text
from wardround_client.predict.predict import NOTICE, Group, Predicted, PredictedImage
from wardround_client.predict.reading import Refusal

UNKNOWN = "unlike the training data"
SCHEMA = 1
Row = dict[str, Any]


def to_json(found: Predicted) -> dict[str, Any]:
    """Return everything as plain values. Paths and frames identify images; no identifier of a patient is included."""
    labels = found.rules.labels
    return {
        "schema": SCHEMA,
        "notice": NOTICE,
        "model": model_facts(found),
        "images": [_image(one, labels) for one in found.images],
        "nodules": [_group(one, labels) for one in found.nodules],
        "patients": [_group(one, labels) for one in found.patients],
        "refused": [_refusal(one) for one in found.refused],
        "passed_over": found.passed_over,
        "not_marked": found.not_marked,
    }


def model_facts(found: Predicted) -> dict[str, Any]:
    """Return what identifies the model and bounds its statements."""
    record = found.package.content
    figures = record["federated_test"] or {}
    calibration = found.rules.calibration
    return {
        "run": record["run"],
        "study": found.package.study.study.name,
        "study_sha256": record["study_sha256"],
        "sha256": record["files"]["model.onnx"]["sha256"],
        "epsilon": epsilon_text(found.package.study.privacy.epsilon),
        "calibrated": calibration is not None,
        "coverage": None if calibration is None else calibration.coverage,
        "auc": figures.get("auc"),
        "auc_ci95": figures.get("auc_ci95"),
        "farthest": found.rules.farthest,
        "unsafe": record["unsafe"],
    }


def to_csv(found: Predicted) -> str:
    """Return one line for each image, lesion and patient, and for each refusal."""
    labels = found.rules.labels
    probability_columns = [f"probability {label}" for label in labels]
    decisions = [f"positive at {point.specificity:.0%} specificity" for point in found.rules.points]
    columns = ("what", "patient", "nodule", "file", "frame", *probability_columns, "low", "high", "label_set")
    written = io.StringIO()
    table = csv.DictWriter(written, [*columns, *decisions, "distance", "refused"], restval="", lineterminator="\n")
    table.writeheader()
    for row in _rows(found):
        prediction: Prediction | None = row.pop("prediction", None)
        if prediction is not None:
            row |= {
                name: f"{value:.4f}" for name, value in zip(probability_columns, prediction.probabilities, strict=True)
            }
            if prediction.interval is not None and prediction.label_set is not None:
                row |= {"low": f"{prediction.interval[0]:.4f}", "high": f"{prediction.interval[1]:.4f}"}
                row["label_set"] = " or ".join(prediction.label_set)
            row |= {
                name: "yes" if one.positive else "no" for name, one in zip(decisions, prediction.decisions, strict=True)
            }
        table.writerow({name: spreadsheet_cell(value) for name, value in row.items()})
    return written.getvalue()


def table_of(found: Predicted) -> tuple[list[str], list[list[str]]]:
    """Return the columns and rows of the table for a terminal: a row for each patient and each of its lesions."""
    labels = found.rules.labels
    columns = ["patient", "nodule", "images", *(f"P({label})" for label in labels[1:]), "95 %", "may be"]
    columns += [f"at {point.specificity:.0%} spec." for point in found.rules.points]
    rows = []
    for group in sorted((*found.patients, *found.nodules), key=lambda one: (one.patient, one.nodule or 0)):
        prediction, seen = group.prediction, len(group.of)
        row = [str(group.patient) if group.nodule is None else "", "" if group.nodule is None else str(group.nodule)]
        row.append(str(seen) if not group.left_out else f"{seen} of {seen + group.left_out}")
        if prediction is None:
            rows.append([*row, "refused", "", UNKNOWN, *("" for _ in found.rules.points)])
            continue
        row += [f"{value:.0%}" for value in prediction.probabilities[1:]]
        if prediction.interval is None or prediction.label_set is None:
            row += ["not calibrated", ""]
        else:
            row += ["{:.0%}–{:.0%}".format(*prediction.interval), " or ".join(prediction.label_set)]
        rows.append([*row, *("positive" if one.positive else "negative" for one in prediction.decisions)])
    return columns, rows


def summary_lines(found: Predicted) -> list[str]:
    """Return the lines below the table: what the columns mean, refusals by reason, and the notice."""
    lines = []
    calibration = found.rules.calibration
    if calibration is not None:
        lines.append(
            f"Probabilities are calibrated on about {calibration.patients} held-out patients; 95 % is the interval of "
            f"the calibration. 'May be' includes the right label for {calibration.coverage:.0%} of such patients."
        )
    else:
        lines.append(
            "Not calibrated: the sites of this study released no figures. Probabilities are those of the network."
        )
    for point in found.rules.points:
        lines.append(
            f"At {point.specificity:.0%} specificity the federation measured a sensitivity of {point.sensitivity:.0%} "
            f"({point.low:.0%}–{point.high:.0%})."
        )
    if found.unknown:
        lines.append(f"{len(found.unknown)} of {len(found.images)} images were refused: {UNKNOWN}.")
    for (title, advice), count in Counter((one.title, one.advice) for one in found.refused).items():
        lines.append(f"{count} not used: {title}. {advice}")
    if found.not_marked:
        lines.append(f"{found.not_marked} images have no position in the table and were not asked about.")
    if found.package.content["unsafe"]:
        lines.append("UNSAFE EXPORT: this model was exported although the privacy check did not pass; see its card.")
    return [*lines, NOTICE]


def write_results(folder: Path, found: Predicted) -> list[Path]:
    """Write predictions.json and predictions.csv to an existing folder; return their paths."""
    written = {
        folder / "predictions.json": json.dumps(to_json(found), indent=1) + "\n",
        folder / "predictions.csv": to_csv(found),
    }
    for path, text in written.items():
        with open(path, "x", encoding="utf-8", newline="") as file:
            file.write(text)
    return list(written)


def _rows(found: Predicted) -> Iterator[Row]:
    for group in (*found.patients, *found.nodules):
        yield {
            "what": "patient" if group.nodule is None else "nodule",
            "patient": group.patient,
            "nodule": group.nodule,
            "prediction": group.prediction,
            "refused": UNKNOWN if group.prediction is None else "",
        }
    for one in found.images:
        yield {
            "what": "image",
            "patient": one.image.patient,
            "nodule": one.image.nodule,
            "file": path_text(one.image.path),
            "frame": one.image.frame,
            "prediction": one.prediction,
            "distance": f"{one.distance:.3f}",
            "refused": UNKNOWN if one.prediction is None else "",
        }
    for refusal in found.refused:
        yield {"what": "refused", "file": path_text(refusal.path), "frame": refusal.frame, "refused": refusal.title}


def _image(one: PredictedImage, labels: Sequence[str]) -> Mapping[str, Any]:
    place = {
        "file": path_text(one.image.path),
        "frame": one.image.frame,
        "patient": one.image.patient,
        "nodule": one.image.nodule,
        "distance": one.distance,
    }
    if one.prediction is None:
        return {**place, "refused": UNKNOWN}
    return {**place, "refused": None, **one.prediction.to_json(labels)}


def _group(one: Group, labels: Sequence[str]) -> Mapping[str, Any]:
    place = {"patient": one.patient, "nodule": one.nodule, "images": len(one.of), "images_unknown": one.left_out}
    if one.prediction is None:
        return {**place, "refused": UNKNOWN}
    strongest = one.strongest.image
    return {
        **place,
        "refused": None,
        "strongest_image": {"file": path_text(strongest.path), "frame": strongest.frame},
        **one.prediction.to_json(labels),
    }


def _refusal(one: Refusal) -> Mapping[str, Any]:
    return {
        "file": path_text(one.path),
        "frame": one.frame,
        "code": one.code,
        "reason": one.title,
        "advice": one.advice,
    }
