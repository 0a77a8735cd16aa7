"""What an export needs: attack reports, an export process without a process, and the facts of a finished run."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from wardround.handover import export, onnx_export
from wardround.study.load import Study


def attack_report(study: Study, run_id: str = "20261129-025118-ef82ad", **changes: Any) -> dict[str, Any]:
    """The content of attack.json of a run that kept its promise."""
    checks = [
        {
            "name": name,
            "question": "?",
            "measured": "0.996 of the planned size",
            "limit": "0.98–1.02",
            "verdict": "pass",
        }
        for name in ("noise-size", "replay", "canaries", "membership", "inversion")
    ]
    canaries = {
        "canaries": 500,
        "guesses": 100,
        "right": [95, 97, 96, 98, 93],
        "right_limit": 106,
        "epsilon_bounds": [2.1, 2.5, 2.3, 2.7, 1.9],
        "epsilon_bound": 2.7,
        "signal": 1.56,
        "signal_expected": 1.59,
        "signal_limit": 0.25,
        "epsilon_promised": study.privacy.epsilon,
        "delta": study.privacy.delta,
        "verdict": "pass",
    }
    membership = {
        "auc": 0.576,
        "auc_ci95": [0.483, 0.663],
        "auc_limit": 0.869,
        "true_positive_rate_at_1_percent": 0.0,
        "true_positive_rate_ci95": [0.0, 0.03],
        "true_positive_rate_limit": 0.23,
        "verdict": "pass",
    }
    return {
        "schema": 1,
        "run_id": run_id,
        "study_sha256": study.sha256(),
        "model_sha256": None,
        "verdict": "pass",
        "checks": checks,
        "canaries": canaries,
        "membership": membership,
        "inversion": {"verdict": "pass"},
        "seeds": 5,
        **changes,
    }


def write_report(path: Path, report: dict[str, Any]) -> Path:
    path.write_text(json.dumps(report))
    return path


def export_in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let exports make the ONNX file in this process, which has loaded torch already."""

    def run(module: str, arguments: list[str], fault: type[Exception], limit_s: float) -> str:
        assert module == "wardround.handover.onnx_export"
        source, model, path = map(Path, arguments)
        study = onnx_export.study_from_json(source.read_text(), str(source))
        return json.dumps(asdict(onnx_export.export_file(study, model, path)))

    monkeypatch.setattr(export, "run_isolated", run)
