"""A real exported model: the public start of a study, its ONNX file, and a calibration; made once a test session."""

from __future__ import annotations

import json
from pathlib import Path

from builders.packages import edit_record, write_package

from wardround.handover.network import network_with
from wardround.handover.onnx_export import export
from wardround.handover.package import MODEL_FILE, ONNX_FILE, RECORD_FILE, file_entry
from wardround.metrics.calibration import Calibration
from wardround.study.load import Study, parse_study
from wardround.tasks.classification.exported import exported

CALIBRATION = Calibration(
    temperature=1.3, scale_variance=0.02, offset_variance=0.1, covariance=0.0, coverage=0.9,
    positive_from=-1.0, negative_to=1.0, patients=80,
)  # fmt: skip
FIGURES = {
    "auc": 0.87, "auc_ci95": [0.8, 0.92], "fitted_calibration": CALIBRATION.to_json(),
    "thresholds": [{"specificity": 0.9, "sensitivity": 0.7, "low": 0.55, "high": 0.82, "threshold": 0.6}],
}  # fmt: skip


def nodule_study(**data) -> Study:
    """A study of marked regions on CT, as studies/lidc.toml, at 64 pixels."""
    return parse_study(
        {
            "study": {"name": "nodules", "rounds": 2},
            "data": {
                "labels": ("benign", "malignant"), "image_size": 64, "region": "marked", "modality": "CT",
                "spacing_mm": 0.7, **data,
            },
            "model": {"name": "phantom-encoder", "init": "phantom", "trainable": "head"},
            "privacy": {"epsilon": 8.0, "delta": 1e-4, "max_grad_norm": 0.3, "nominal_patients": 40},
            "aggregation": {"nominal_sites": 1},
        }
    )  # fmt: skip


def write_exported(folder: Path, study: Study | None = None, *, calibrated: bool = True) -> Path:
    """Write a complete package with a real ONNX file (about five seconds)."""
    study = study or nodule_study()
    write_package(folder, study)
    network = network_with(study, (folder / MODEL_FILE).read_bytes(), folder / MODEL_FILE)
    released, threshold = exported(network, study)
    export(released, study, folder / ONNX_FILE)
    files = json.loads((folder / RECORD_FILE).read_text())["files"]
    edit_record(
        folder,
        files={**files, ONNX_FILE: file_entry(folder / ONNX_FILE)},
        familiarity={"threshold": threshold},
        calibration=CALIBRATION.to_json() if calibrated else None,
        federated_test=FIGURES if calibrated else None,
        unsafe=False,
        unsafe_reasons=[],
    )
    return folder
