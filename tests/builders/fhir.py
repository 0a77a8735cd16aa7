"""FHIR resources and exports, written for a test."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Resource = dict[str, Any]
LOINC = "http://loinc.org"


def patient(name: str, **fields: Any) -> Resource:
    return {"resourceType": "Patient", "id": name, "gender": "female", "birthDate": "1950-06-01", **fields}


def encounter(name: str, start: str, end: str | None = None, disposition: str = "home", **fields: Any) -> Resource:
    period = {"start": start, **({"end": end} if end else {})}
    out = {"coding": [{"code": disposition}]}
    return {
        "resourceType": "Encounter", "id": f"e-{name}", "status": "finished" if end else "in-progress",
        "class": {"code": "IMP"}, "subject": {"reference": f"Patient/{name}"}, "period": period,
        "hospitalization": {"dischargeDisposition": out}, **fields,
    }  # fmt: skip


def coded(code: str) -> dict[str, Any]:
    return {"coding": [{"system": LOINC, "code": code}]}


def observation(name: str, code: str, value: Any, unit: str, when: str, **fields: Any) -> Resource:
    return {
        "resourceType": "Observation", "status": "final", "subject": {"reference": f"Patient/{name}"},
        "code": coded(code), "effectiveDateTime": when,
        "valueQuantity": {"value": value, "code": unit}, **fields,
    }  # fmt: skip


def condition(name: str, code: str, onset: str, state: str = "confirmed") -> Resource:
    return {
        "resourceType": "Condition", "subject": {"reference": f"Patient/{name}"}, "code": {"coding": [{"code": code}]},
        "onsetDateTime": onset, "verificationStatus": {"coding": [{"code": state}]},
    }  # fmt: skip


def ndjson(folder: Path, resources: Iterable[Resource], *, packed: bool = False) -> Path:
    """Write a bulk export: a file for each type."""
    folder.mkdir(parents=True, exist_ok=True)
    lines: dict[str, list[str]] = {}
    for resource in resources:
        lines.setdefault(resource["resourceType"], []).append(json.dumps(resource))
    for kind, own in lines.items():
        content = ("\n".join(own) + "\n").encode()
        if packed:
            (folder / f"{kind}.000.ndjson.gz").write_bytes(gzip.compress(content))
        else:
            (folder / f"{kind}.000.ndjson").write_bytes(content)
    return folder


def bundle(path: Path, resources: Iterable[Resource]) -> Path:
    """Write one bundle."""
    path.parent.mkdir(parents=True, exist_ok=True)
    entries = [{"fullUrl": "urn:uuid:x", "resource": resource} for resource in resources]
    path.write_text(json.dumps({"resourceType": "Bundle", "type": "collection", "entry": entries}))
    return path.parent
