"""Writes explanations: a page, pictures and DICOM maps for each image, and one document for programs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydicom.uid import generate_uid

from wardround.sources.images.study import image_data
from wardround.storage.text_file import path_text
from wardround.tasks.classification.explain.named_outputs import Decomposition
from wardround.tasks.classification.explain.page import Explanation, html_page, map_pictures
from wardround_client.explain.explain import Explained
from wardround_client.explain.parametric_map import header_for_map, on_source_grid, parametric_map, source_box
from wardround_client.predict.predict import NOTICE, PredictedImage
from wardround_client.predict.results import UNKNOWN, model_facts

SCHEMA = 1


def write_explanations(folder: Path, explained: Explained) -> list[Path]:
    """Write explanation-N.html, evidence-N.png, occlusion-N.png and explanations.json; return their paths.

    For a DICOM image of one frame with a place in space, and a header that a map can repeat, there are evidence-N.dcm
    and occlusion-N.dcm too. The folder must exist.
    """
    written = []
    series_uid, model = generate_uid(), f"Wardround {model_facts(explained.found)['run']}"
    for number, one in enumerate(explained.images, 1):
        if one.explanation is None:
            continue
        written.append(folder / f"explanation-{number}.html")
        written[-1].write_text(html_page(one.explanation), encoding="utf-8")
        for name, content in map_pictures(one.explanation):
            written.append(folder / f"{name}-{number}.png")
            written[-1].write_bytes(content)
        written += _write_dicom_maps(folder, one.predicted, one.explanation, explained, series_uid, model, number)
    written.append(folder / "explanations.json")
    written[-1].write_text(json.dumps(to_json(explained), indent=1), encoding="utf-8")
    return written


def to_json(explained: Explained) -> dict[str, Any]:
    """Return everything but the maps as plain values. No identifier of a patient is included."""
    return {
        "schema": SCHEMA,
        "notice": NOTICE,
        "model": model_facts(explained.found),
        "images": [_image(one.predicted, one.explanation) for one in explained.images],
        "refused": [
            {"file": path_text(one.path), "code": one.code, "reason": one.title} for one in explained.found.refused
        ],
    }


def _image(predicted: PredictedImage, found: Explanation | None) -> dict[str, Any]:
    plain: dict[str, Any] = {
        "file": path_text(predicted.image.path),
        "frame": predicted.image.frame,
        "nodule": predicted.image.nodule,
    }
    if found is None:
        return {**plain, "refused": UNKNOWN}
    surrogate = found.surrogate
    return {
        **plain,
        "label": found.label,
        "score": found.score,
        "named_outputs": {one.output.concept: {"value": one.value, "on_phantoms": one.works} for one in found.measured},
        "score_parts": None if found.decomposition is None else _parts(found.decomposition),
        "surrogate": None
        if surrogate is None
        else {
            "fidelity": surrogate.fidelity,
            "by_majority": surrogate.by_majority,
            "tested_patients": surrogate.tested_patients,
            "rules": [
                {"if": list(rule.conditions), "then": rule.decision, "rows": rule.rows} for rule in surrogate.rules
            ],
        },
        "lookalikes": []
        if found.lookalikes is None
        else [
            {"generated_as": one.generated_as, "score": one.score, "distance": one.distance}
            for one in found.lookalikes.nearest
        ],
        "random_weights": {
            "passed": found.sanity.passed,
            "evidence": found.sanity.evidence.rank_correlation,
            "occlusion": found.sanity.occlusion.rank_correlation,
        },
        "left_out": list(found.left_out),
    }


def _parts(decomposition: Decomposition) -> dict[str, Any]:
    return {
        "start": decomposition.start,
        **{share.output.concept: share.value for share in decomposition.shares},
        "remainder": decomposition.remainder,
        "explained_over_phantoms": decomposition.explained,
    }


def _write_dicom_maps(
    folder: Path,
    predicted: PredictedImage,
    found: Explanation,
    explained: Explained,
    series_uid: str,
    model: str,
    number: int,
) -> list[Path]:
    image = predicted.image
    header = header_for_map(image.path) if image.is_dicom else None
    if header is None:
        return []
    box = source_box(image.path, header, image_data(explained.found.package.study), image.mark_xy)
    shape_HW = (int(header.Rows), int(header.Columns))
    written = []
    for place, (name, map_hw) in enumerate(
        (("evidence", found.maps.evidence_HW), ("occlusion", found.maps.occlusion_HW)), 2 * number - 1
    ):
        map_HW = on_source_grid(map_hw, box, shape_HW)
        try:
            made = parametric_map(header, map_HW, f"{name.capitalize()} map", model, series_uid, place)
        except Exception:  # highdicom raises errors of many types for what the standard forbids in a header
            return []
        written.append(folder / f"{name}-{number}.dcm")
        with open(written[-1], "xb") as file:
            made.save_as(file, enforce_file_format=True)
    return written
