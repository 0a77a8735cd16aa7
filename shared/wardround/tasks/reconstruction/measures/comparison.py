"""`wardround-sim compare` for reconstruction: a fold's patients restored by models that never saw them.

At each epsilon the federation trains on the other folds with the round functions of a real site and server, and
everything is measured on the same spoiled images of the fold: the trained models, their public start, classical methods
tuned on training patients, and the area under the ROC curve of the public nodule classifier on what each of them makes
of the images. Shapes: N images, P patients.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from wardround.errors import DataError
from wardround.metrics.classification import auc
from wardround.networks.build import build_model, initial_network
from wardround.networks.weights import load_weights, trained_parameters
from wardround.sources.images.study import ImageData, image_data
from wardround.study.load import Study, parse_study, with_epsilon
from wardround.study.schema import ModelSection
from wardround.tasks.assessment import ComparisonRow, ReportTable, SiteData, Trainer, patient_offsets
from wardround.tasks.reconstruction.degradations import degradation_of
from wardround.tasks.reconstruction.measures.quality import (
    START,
    TUNING_IMAGES,
    compared,
    mean_over,
    spoil,
    spread_rows,
)
from wardround.tasks.reconstruction.study import section_of

IMAGES_OF_A_PATIENT = 2  # at most, of those tested: the mean over patients hardly changes, and the time does
TRUE = "true image"


def methods_rows(
    study: Study, sites: Sequence[SiteData], epsilons: Sequence[float], trainer: Trainer
) -> list[ComparisonRow]:
    """Train at each epsilon on the training rows and test on the others: a row a method, with its figures and gains.

    Raises:
        DataError: there is nobody to test on.
    """
    networks: dict[str, nn.Module] = {START: initial_network(study)}
    for epsilon in epsilons:
        asked = with_epsilon(study, epsilon) if math.isfinite(epsilon) else without_privacy(study)
        name = f"trained, ε = {epsilon:g}" if math.isfinite(epsilon) else "trained, no privacy"
        network = initial_network(asked)
        load_weights(trained_parameters(network, asked), trainer.federated(asked, sites))
        networks[name] = network
    images, labels_N, patients_N = _tested(sites)
    few = 1 + TUNING_IMAGES // len(sites)
    tuning = np.concatenate([
        np.asarray(site.values_N[spread_rows(np.flatnonzero(site.training_N), few)]) for site in sites
    ])  # fmt: skip
    degradation = degradation_of(section_of(study))
    spoiled = spoil(images, degradation)
    figures, pictures, strengths = compared(spoiled, spoil(tuning, degradation), networks)
    areas = _areas(study, {**pictures, TRUE: torch.from_numpy(images).float()}, labels_N)
    start, out = figures[START], []
    for name, found in figures.items():
        gain = mean_over(found.psnr_N - start.psnr_N, patients_N)
        out.append({
            "method": name, "strength": strengths.get(name),
            "psnr_db": float(found.psnr_N.mean()), "ssim": float(found.ssim_N.mean()),
            "gain_db": gain.value, "gain_ci95": [gain.low, gain.high], "auc": areas[name], "auc_true": areas[TRUE],
            "images": len(images), "patients": int(len(np.unique(patients_N))),
        })  # fmt: skip
    return out


def without_privacy(study: Study) -> Study:
    """The same study without noise and bound: for comparison in a simulation only."""
    content = study.model_dump(exclude_none=True)
    content["privacy"].update(epsilon=float("inf"), max_grad_norm=float("inf"))
    if content["training"]["learning_rate"] == "rule":
        content["training"]["learning_rate"] = 1.0
    content["evaluation"]["epsilon"] = 0.0
    return parse_study(content)


def methods_table(rows: Sequence[ComparisonRow]) -> ReportTable:
    """Means over folds and draws; the paired differences of each fold to the public start, and how they scatter."""
    lines = []
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        gains = [row["gain_db"] for row in own]
        areas = [row["auc"] for row in own if row["auc"] is not None]
        lines.append([
            method,
            f"{np.mean([row['psnr_db'] for row in own]):.2f}",
            f"{np.mean([row['ssim'] for row in own]):.4f}",
            f"{np.mean(gains):+.3f} ± {np.std(gains, ddof=1) / math.sqrt(len(gains)) if len(gains) > 1 else 0:.3f}",
            f"{min(gains):+.3f}",
            f"{max(gains):+.3f}",
            f"{np.mean(areas):.4f}" if areas else "–",
        ])  # fmt: skip
    return ReportTable(
        caption="",
        columns=["method", "PSNR", "SSIM", "gain over the start", "worst fold", "best fold", "nodule AUC"],
        rows=lines,
    )


def _tested(sites: Sequence[SiteData]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images uint8 (N, 1, H, W), labels (N,) and patients (N,) of the rows to test on, a few of each patient."""
    rows = [_few_of_each(site) for site in sites]
    images = np.concatenate([np.asarray(site.values_N[kept_N]) for site, kept_N in zip(sites, rows, strict=True)])
    if not len(images):
        raise DataError("no patient of this fold is in the data; check the folds")
    labels_N = np.concatenate([site.labels_N[kept_N] for site, kept_N in zip(sites, rows, strict=True)])
    offsets = patient_offsets(sites)
    patients = [
        site.patient_N[kept_N].astype(np.int64) + offset
        for site, kept_N, offset in zip(sites, rows, offsets, strict=True)
    ]
    return images, labels_N.astype(np.int64), np.concatenate(patients)


def _few_of_each(site: SiteData) -> np.ndarray:
    """Of each held-out patient's rows at most `IMAGES_OF_A_PATIENT`, spread evenly, bool (N,)."""
    kept_N = np.zeros(len(site.held_out_N), dtype=bool)
    for patient in np.unique(site.patient_N[site.held_out_N]):
        rows = np.flatnonzero(site.held_out_N & (site.patient_N == patient))
        kept_N[spread_rows(rows, IMAGES_OF_A_PATIENT)] = True
    return kept_N


def _areas(study: Study, pictures: dict[str, Tensor], labels_N: np.ndarray) -> dict[str, float | None]:
    """AUC of the public nodule classifier (the phantom model, which no patient moved) on each method's images; None
    where the study's labels are not those that it tells apart.
    """
    if "malignant" not in study.data.labels:
        return dict.fromkeys(pictures)
    data = ImageData(labels=("benign", "malignant"), image_size=image_data(study).image_size)
    classifier = build_model(ModelSection(), data, 0).eval()
    kept_N = np.isin(labels_N, [study.data.labels.index(label) for label in ("benign", "malignant")])
    positive_N = (labels_N[kept_N] == study.data.labels.index("malignant")).astype(np.int64)
    areas: dict[str, float | None] = {}
    with torch.no_grad():
        for name, picture in pictures.items():
            logits = torch.cat([classifier(part)[:, 0] for part in picture[torch.from_numpy(kept_N)].split(32)])
            areas[name] = auc(logits.double().numpy(), positive_N)
    return areas
