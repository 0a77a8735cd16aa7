"""Make model.json from a finished run and what the export found. No figure in it is written by hand."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Literal

from wardround.errors import ModelError
from wardround.handover.package import SCHEMA, ModelRecord
from wardround.handover.release_gate import Decision
from wardround.study.load import Study

NEEDED = ("architecture_sha256", "privacy", "rounds_completed", "sites", "missing")  # of result.json
SOFTWARE = ("wardround", "torch", "numpy", "onnx", "onnxruntime")


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """A finished run, as its folder describes it.

    `result` is the content of result.json, `metrics` that of metrics.jsonl, and `created` the time at which the run
    finished, in UTC.
    """

    run: str
    kind: Literal["federation", "simulation"]
    study: Study
    result: Mapping[str, Any]
    metrics: Iterable[Mapping[str, Any]]
    created: str


@dataclass(frozen=True, kw_only=True)
class OnnxFacts:
    """What the export of the ONNX file found (`onnx_export.OnnxExport`)."""

    architecture_sha256: str
    familiarity_threshold: float | None
    images_compared: int
    largest_difference: float


def record_of(
    facts: RunFacts,
    decision: Decision,
    onnx: OnnxFacts | None,
    *,
    numbers: int,
    license: str,
    files: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """Return the content of model.json.

    Args:
        facts: The run.
        decision: Of the release gate.
        onnx: None for a task that leaves without an ONNX file.
        numbers: How many numbers the network has.
        license: The SPDX name of the model's licence, or `other`.
        files: Name -> SHA-256 and size (`package.file_entry`).

    Raises:
        ModelError: The run's result is incomplete.
    """
    study, result = facts.study, facts.result
    if missing := [key for key in NEEDED if key not in result]:
        raise ModelError(f"result.json of run {facts.run}: {missing[0]} is missing; restore the run from a backup")
    figures = result.get("federated_test")
    record = {
        "schema": SCHEMA,
        "run": facts.run,
        "kind": facts.kind,
        "task": study.study.task,
        "study": json.loads(study.canonical()),
        "study_sha256": study.sha256(),
        "architecture": study.model.name,
        "architecture_sha256": result["architecture_sha256"],
        "labels": list(study.data.labels),
        "numbers": numbers,
        "created": facts.created,
        "privacy": dict(result["privacy"]),
        "rounds": result["rounds_completed"],
        "sites": _sites(facts),
        "missing": [dict(one) for one in result["missing"]],
        "phantoms": result.get("phantoms") is True,
        "released": result.get("released"),
        "federated_test": figures,
        "simulated_test": _simulated_test(result),
        "calibration": (figures or {}).get("fitted_calibration"),
        "familiarity": _familiarity(onnx),
        "onnx": None if onnx is None else _comparison(onnx),
        "unsafe": decision.unsafe,
        "unsafe_reasons": list(decision.reasons),
        "attack": None if decision.attack is None else dict(decision.attack),
        "license": license,
        "software": {name: version(name) for name in SOFTWARE},
        "files": {name: dict(entry) for name, entry in files.items()},
    }
    return ModelRecord.model_validate(json.loads(json.dumps(record))).model_dump(mode="json", by_alias=True)


def _sites(facts: RunFacts) -> dict[str, dict[str, Any]]:
    """Return the sites without their numbers of patients, which a simulation knows and no ε covers."""
    counted = Counter(line["site"] for line in facts.metrics if line["code"] is None)
    return {
        site: {"rounds_counted": counted[site], "epsilon": known.get("epsilon")}
        for site, known in sorted(facts.result["sites"].items())
    }


def _simulated_test(result: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the exact figures of a simulation, but only those about generated patients: they need no privacy."""
    if result.get("phantoms") is not True:
        return None
    by_patient = (result.get("test") or {}).get("unit") == "patient"  # where a patient has one row
    found = {"images": None if by_patient else result.get("test"), "patients": result.get("test_by_patient")}
    return {unit: dict(figures) for unit, figures in found.items() if figures and "auc" in figures} or None


def _familiarity(onnx: OnnxFacts | None) -> dict[str, Any] | None:
    """Return the threshold of `distance`, or None if no file has this output."""
    if onnx is None or onnx.familiarity_threshold is None:
        return None
    return {"threshold": onnx.familiarity_threshold}


def _comparison(onnx: OnnxFacts) -> dict[str, Any]:
    return {"images_compared": onnx.images_compared, "largest_difference": onnx.largest_difference}
