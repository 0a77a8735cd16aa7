"""The figures of a set of synthetic images, measured beside the images of real patients.

Exact figures of real patients, as only a simulation can have them. Fidelity is measured on the phantom encoder's pooled
features. Shapes: N images, C channels, H rows, W columns, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from wardround.errors import DataError
from wardround.metrics.classification import auc, auc_interval
from wardround.networks.phantom_encoder import CROP_PX
from wardround.networks.preprocessing import CentreCrop, OtsuNormalise
from wardround.tasks.assessment import SiteData, SyntheticImages, patient_offsets
from wardround.tasks.synthesis.measures.classifiers import scores_of_classifier
from wardround.tasks.synthesis.measures.fidelity import CopyCheck, Measured, copies, frechet_interval, told_apart

CLASSIFIERS = 3
COPY_PX = 16  # side at which images are held against each other pixel by pixel
AT_ONCE = 100


@dataclass(frozen=True, kw_only=True, eq=False)
class RealImages:
    """Labelled images of real patients with the encoder's features: uint8 (N, C, H, W), patients numbered over all
    hospitals, and whether each trained.
    """

    images_NCHW: np.ndarray
    labels_N: np.ndarray
    patients_N: np.ndarray
    trained_N: np.ndarray
    features_ND: np.ndarray

    @property
    def held_out_N(self) -> np.ndarray:
        return ~self.trained_N


@dataclass(frozen=True, kw_only=True, eq=False)
class Figures:
    """What one set of synthetic images came to. `auc` is None where the held-out patients have one label."""

    auc: Measured | None
    auc_by_classifier: list[float]
    frechet: Measured
    told_apart: Measured
    copies: CopyCheck
    images: int

    def to_json(self) -> dict[str, Any]:
        return {
            "auc": self.auc.to_json() if self.auc else None,
            "auc_by_classifier": [round(one, 4) for one in self.auc_by_classifier],
            "frechet": self.frechet.to_json(),
            "told_apart": self.told_apart.to_json(),
            "copies": self.copies.to_json(),
            "images": self.images,
        }


def real_images(sites: Sequence[SiteData], features_of: Callable[[np.ndarray], np.ndarray]) -> RealImages:
    """All labelled images of all sites. Raises `DataError` where nobody trains, or nobody is held out."""
    images, labels, patients, trained = [], [], [], []
    for site, offset in zip(sites, patient_offsets(sites), strict=True):
        rows = np.flatnonzero(site.labels_N >= 0)
        images.append(np.asarray(site.values_N[rows]))
        labels.append(site.labels_N[rows].astype(np.int64))
        patients.append(site.patient_N[rows] + offset)
        trained.append(site.training_N[rows])
    trained_N = np.concatenate(trained)
    if trained_N.all() or not trained_N.any():
        raise DataError("no patient is held out for testing; raise evaluation.holdout, or give more patients")
    images_NCHW = np.concatenate(images)
    return RealImages(
        images_NCHW=images_NCHW,
        labels_N=np.concatenate(labels),
        patients_N=np.concatenate(patients),
        trained_N=trained_N,
        features_ND=features_of(images_NCHW),
    )


def figures_of(made: SyntheticImages, features_ND: np.ndarray, real: RealImages) -> Figures:
    """All figures of one set of synthetic images with their features."""
    held_out_N = real.held_out_N
    found, each = auc_of(made, real)
    held_out_ND, patients_N = real.features_ND[held_out_N], real.patients_N[held_out_N]
    return Figures(
        auc=found,
        auc_by_classifier=each,
        frechet=frechet_interval(features_ND, held_out_ND, patients_N),
        told_apart=told_apart(features_ND, held_out_ND, patients_N),
        copies=copies(small(made.images_NCHW), small(real.images_NCHW), real.patients_N, real.trained_N),
        images=len(made.labels_N),
    )


def auc_of(made: SyntheticImages, real: RealImages) -> tuple[Measured | None, list[float]]:
    """AUC on the held-out patients of classifiers trained on `made` alone: of their mean score, with its interval, and
    of each of them. None for more than two labels, or images of one label.
    """
    if real.labels_N.max() > 1 or len(np.unique(made.labels_N)) < 2:
        return None, []
    tested_N = real.held_out_N
    labels_N = real.labels_N[tested_N]
    scores = [
        scores_of_classifier(made.images_NCHW, made.labels_N, real.images_NCHW[tested_N], seed)
        for seed in range(CLASSIFIERS)
    ]
    each = [auc(one, labels_N) for one in scores]
    estimate = auc_interval(np.mean(scores, 0), labels_N, real.patients_N[tested_N])
    if estimate is None:
        return None, []
    return Measured(value=estimate.value, low=estimate.low, high=estimate.high), [
        one for one in each if one is not None
    ]


def small(images_NCHW: np.ndarray) -> np.ndarray:
    """Middle 64 x 64 pixels, each image in one contrast, at 16 x 16: how images are held against each other."""
    crop, normalise = CentreCrop(CROP_PX), OtsuNormalise()
    parts = []
    for at in range(0, len(images_NCHW), AT_ONCE):
        chunk = normalise(crop(torch.from_numpy(np.ascontiguousarray(images_NCHW[at : at + AT_ONCE]))))
        parts.append(functional.adaptive_avg_pool2d(chunk.mean(1, keepdim=True), COPY_PX).flatten(1))
    return torch.cat(parts).numpy()
