"""The metadata of a model card: the fields of Hugging Face (https://huggingface.co/docs/hub/model-cards)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wardround.sources.registry import of_study
from wardround.study.load import Study
from wardround.tasks.registry import release_part
from wardround.text import count_text

Record = Mapping[str, Any]


def metadata_of(record: Record, study: Study) -> dict[str, Any]:
    """Return the metadata of a Hugging Face model card: licence, tags, metrics and `model-index`."""
    metadata: dict[str, Any] = {"language": ["en"], "license": record["license"]}
    if record["license"] == "other":
        metadata["license_name"] = "not-stated"
    metadata |= {
        "library_name": "onnx" if record["onnx"] else "wardround",
        "tags": ["medical", "federated-learning", "differential-privacy", "research-use-only", record["architecture"]],
    }
    if record["onnx"]:
        metadata["pipeline_tag"] = of_study(study).HUB_TASK
    results = _metrics(record)
    metadata["metrics"] = ["roc_auc"] if results else []
    if results:
        index = {
            "task": {"type": of_study(study).HUB_TASK, "name": f"to tell {' and '.join(record['labels'])} apart"},
            "dataset": {"type": "private", "name": _test_name(record)},
            "metrics": results,
        }
        metadata["model-index"] = [{"name": f"wardround-{study.study.name}", "results": [index]}]
    return metadata


def _metrics(record: Record) -> list[dict[str, Any]]:
    """Return the AUC with its interval: the noised one of a federation, or the exact one of generated patients."""
    figures = record["federated_test"] or (record["simulated_test"] or {}).get("patients")
    if not figures or figures.get("auc") is None or not release_part(record["task"]).SCORES_LABELS:
        return []
    low, high = figures["auc_ci95"]
    name = f"AUC by patient (95 %: {low:.3f}–{high:.3f})"
    return [{"type": "roc_auc", "name": name, "value": round(figures["auc"], 3), "verified": False}]


def _test_name(record: Record) -> str:
    kind = "generated" if record["phantoms"] else "held-out"
    return f"{kind} patients of {count_text(len(record['sites']), 'site')}"
