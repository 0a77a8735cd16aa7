"""Explains a released model's decisions about the images of one file at a hospital.

The file goes through the same reading, checks and refusal as in `predict`; an image that the model does not know is not
explained. Nothing is sent, and neither the cohort nor the ledger is changed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from wardround.errors import DataError
from wardround.handover.network import load_network
from wardround.handover.package import Package
from wardround.networks.public_head import PhantomHead
from wardround.printable import escaped
from wardround.sources.images.study import image_data
from wardround.study.load import Study
from wardround.tasks.classification.explain.lookalikes import lookalikes
from wardround.tasks.classification.explain.maps import maps_of
from wardround.tasks.classification.explain.named_outputs import OUTPUTS, Readouts, decompose, load_readouts, measures
from wardround.tasks.classification.explain.page import Explanation, Measured
from wardround.tasks.classification.explain.sanity import check_maps
from wardround.tasks.classification.explain.surrogate import Surrogate, fit_surrogate
from wardround.tasks.classification.explain.targets import label_score, target_of
from wardround.tasks.classification.familiarity import applies_to
from wardround.tasks.classification.predict import Prediction
from wardround_client.explain.site_rows import SiteRows, site_rows
from wardround_client.predict.predict import Predicted, PredictedImage, predict
from wardround_client.predict.results import model_facts

NO_PHANTOMS = "named outputs and lookalikes, which exist for studies of marked regions on CT in grey"
NO_SHARES = "shares of the score, which exist for a head over the public features of the phantom encoder"
NO_SITE = "simple rules that imitate the model, which need prepared data of a site: give --site"

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True, eq=False)
class ExplainedImage:
    """One image with its prediction, and its explanation, or None if the model does not know the image."""

    predicted: PredictedImage
    explanation: Explanation | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Explained:
    """All that a call of `explain` found."""

    found: Predicted
    images: tuple[ExplainedImage, ...]


def explain(
    package: Package,
    file: Path,
    points: Path | None = None,
    site: Path | None = None,
    progress: Progress | None = None,
) -> Explained:
    """Explain the model's decision about every image of a file.

    Args:
        package: The exported model.
        file: A DICOM file or a picture.
        points: A table of positions, for studies of marked regions.
        site: A site's folder with prepared data, for the rules that imitate the model.
        progress: Called as `progress(stage, done, total)`.

    Raises:
        DataError: The file is missing or a folder, or a table or the site's data are wrong.
        ModelError: The model is of another task, damaged, or its ONNX file does not run.
    """
    if file.is_dir():
        raise DataError(f"{file}: is a folder; give one file")
    told = progress or (lambda stage, done, total: None)
    found = predict(package, file, points, told)
    network = load_network(package)
    target_of(network)  # fails before the work for a network without explanations
    readouts = load_readouts() if applies_to(package.study) else None
    rows = None
    if site is not None and readouts is not None:
        rows = site_rows(site, package.study, network, readouts, told)
    images = []
    for number, one in enumerate(found.images):
        told("Explaining", number, len(found.images))
        explanation = None
        if one.prediction is not None:
            explanation = _explanation(one, one.prediction, found, network, readouts, rows)
        images.append(ExplainedImage(predicted=one, explanation=explanation))
    told("Explaining", len(found.images), len(found.images))
    return Explained(found=found, images=tuple(images))


def _explanation(
    one: PredictedImage,
    prediction: Prediction,
    found: Predicted,
    network: nn.Module,
    readouts: Readouts | None,
    rows: SiteRows | None,
) -> Explanation:
    study, image_CHW = found.package.study, one.image.pixels_CHW
    labels = study.data.labels
    label = len(labels) - 1 if len(labels) == 2 else int(np.argmax(prediction.probabilities))
    image = torch.from_numpy(np.array(image_CHW))

    def score_of(images_NCHW: Tensor) -> Tensor:
        with torch.no_grad():
            return label_score(network(images_NCHW), label)

    maps = maps_of(network, image_CHW, label)
    left_out = []
    measured: tuple[Measured, ...] = ()
    decomposition = surrogate = None
    if readouts is None:
        left_out.append(NO_PHANTOMS)
    else:
        values_K = measures(readouts.raw(image[None]), image_data(study).spacing_mm)[0]
        measured = tuple(
            Measured(output=output, value=float(value), accuracy=readouts.accuracy[output.concept])
            for output, value in zip(OUTPUTS, values_K, strict=True)
        )
        if isinstance(network, PhantomHead):
            decomposition = decompose(readouts, network, image, label)
        if rows is None:
            left_out.append(NO_SITE)
        else:
            surrogate = _surrogate(rows, study, values_K.numpy(), left_out)
    if readouts is not None and decomposition is None:
        left_out.append(NO_SHARES)
    return Explanation(
        label=labels[label],
        score=float(score_of(image[None])[0]),
        statement=tuple(_statement(prediction, found)),
        facts=_facts(one, found),
        image_HW=image_CHW[len(image_CHW) // 2],
        maps=maps,
        sanity=check_maps(network, image_CHW, label, maps),
        lookalikes=None if readouts is None else lookalikes(network, image_CHW, score_of),
        measured=measured,
        spacing_mm=image_data(study).spacing_mm,
        decomposition=decomposition,
        surrogate=surrogate,
        left_out=tuple(left_out),
    )


def _surrogate(rows: SiteRows, study: Study, image_K: np.ndarray, left_out: list[str]) -> Surrogate | None:
    """Fit the surrogate, or note in `left_out` why there is none."""
    labels, spacing_mm = study.data.labels, image_data(study).spacing_mm
    try:
        return fit_surrogate(rows.measures_NK, rows.decisions_N, rows.patient_N, labels, spacing_mm, image_K)
    except DataError as error:
        left_out.append(f"simple rules that imitate the model: {error}")
        return None


def _statement(prediction: Prediction, found: Predicted) -> list[str]:
    """Return what `predict` says about the image, in lines for people."""
    calibrated = "" if found.rules.calibration else " (not calibrated)"
    shares = zip(found.rules.labels, prediction.probabilities, strict=True)
    lines = ["The model says: " + ", ".join(f"{label} {value:.0%}" for label, value in shares) + calibrated + "."]
    if prediction.interval is not None and prediction.label_set is not None:
        low, high = prediction.interval
        may_be = " or ".join(prediction.label_set) or "none of the labels"
        lines.append(f"95 % interval of the calibration: {low:.0%} to {high:.0%}. May be: {may_be}.")
    for one in prediction.decisions:
        lines.append(f"At {one.point.specificity:.0%} specificity: {'positive' if one.positive else 'negative'}.")
    return [line.replace("%", " %").replace("  %", " %") for line in lines]


def _facts(one: PredictedImage, found: Predicted) -> tuple[tuple[str, str], ...]:
    facts = model_facts(found)
    nodule = () if one.image.nodule is None else (("Nodule", f"row {one.image.nodule} of the table of positions"),)
    return (
        ("File", escaped(one.image.path.name)),
        ("Frame", str(one.image.frame)),
        *nodule,
        ("Model", f"run {facts['run']}, study {facts['study']}"),
        ("Network", f"{found.package.study.model.name}, {found.package.study.model.trainable} trained"),
        ("Hash of the ONNX file", str(facts["sha256"])),
        ("Privacy", f"ε = {facts['epsilon']} per patient"),
    )
