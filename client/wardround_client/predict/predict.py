"""Predicts with a released model at a hospital: reads images, runs the ONNX file, and groups what the model says.

Everything stays at the site: nothing is sent, and neither the cohort nor the ledger is touched.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wardround.errors import ModelError
from wardround.handover.onnx_model import AT_ONCE, open_onnx
from wardround.handover.package import Package
from wardround.sources.images.study import image_data
from wardround.storage.text_file import path_text
from wardround.tasks.classification.predict import Prediction, Rules, is_known, prediction_of, rules_of
from wardround_client.predict.reading import ReadImage, Refusal, read_images

NOTICE = "Research software, not a medical device: not for diagnosis or treatment."

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True, eq=False)
class PredictedImage:
    """One image: its distance from what the model knows, and its prediction, or None if the model does not know it."""

    image: ReadImage
    distance: float
    prediction: Prediction | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Group:
    """What the model says about a lesion (`nodule` is its row in the table of points) or a patient.

    `members` are the group's images. `prediction` comes from those that the model knows; None if it knows none.
    """

    patient: int
    nodule: int | None
    members: tuple[PredictedImage, ...]
    prediction: Prediction | None

    @property
    def of(self) -> tuple[PredictedImage, ...]:
        """The images that the model knows."""
        return tuple(one for one in self.members if one.prediction is not None)

    @property
    def left_out(self) -> int:
        """The number of images that the model does not know."""
        return len(self.members) - len(self.of)

    @property
    def strongest(self) -> PredictedImage:
        """The image with the highest score."""
        return max(self.of, key=lambda one: one.prediction.logits[-1] if one.prediction else -np.inf)


@dataclass(frozen=True, kw_only=True, eq=False)
class Predicted:
    """All that a call of `predict` found."""

    package: Package
    rules: Rules
    images: tuple[PredictedImage, ...]
    nodules: tuple[Group, ...]
    patients: tuple[Group, ...]
    refused: tuple[Refusal, ...]
    passed_over: int
    not_marked: int

    @property
    def unknown(self) -> tuple[PredictedImage, ...]:
        """The images that the model does not know."""
        return tuple(one for one in self.images if one.prediction is None)


def predict(package: Package, source: Path, points: Path | None = None, progress: Progress | None = None) -> Predicted:
    """Predict for every image of a file or folder.

    Args:
        package: The exported model.
        source: A file or a folder, as `read_images` takes it.
        points: A table of positions, for studies of marked regions.
        progress: Called as `progress(stage, done, total)`.

    Raises:
        DataError: The input is missing or a table is wrong.
        ModelError: The model is of another task, damaged, or its ONNX file does not run.
    """
    if not package.has_onnx:
        task = package.study.study.task
        raise ModelError(f"{path_text(package.folder)}: a model of {task}, which predicts no labels")
    rules = rules_of(package.content)
    model = open_onnx(package)
    told = progress or (lambda stage, done, total: None)
    read = read_images(
        source, image_data(package.study), points, lambda done, total: told("Reading images", done, total)
    )
    images: list[PredictedImage] = []
    for begin in range(0, len(read.images), AT_ONCE):
        chunk = read.images[begin : begin + AT_ONCE]
        logits_NK, distance_N = model.run(np.stack([one.pixels_CHW for one in chunk]))
        if not (np.isfinite(logits_NK).all() and np.isfinite(distance_N).all()):
            raise ModelError(f"{path_text(package.folder)}: the model returned a number that is not finite")
        for image, logits_K, distance, known in zip(
            chunk, logits_NK.astype(np.float64), distance_N, is_known(distance_N, rules), strict=True
        ):
            prediction = prediction_of(logits_K[None], rules) if known else None
            images.append(PredictedImage(image=image, distance=float(distance), prediction=prediction))
        told("Predicting", len(images), len(read.images))
    return Predicted(
        package=package,
        rules=rules,
        images=tuple(images),
        nodules=_groups(images, rules, by_nodule=True),
        patients=_groups(images, rules, by_nodule=False),
        refused=read.refused,
        passed_over=read.passed_over,
        not_marked=read.not_marked,
    )


def _groups(images: Sequence[PredictedImage], rules: Rules, *, by_nodule: bool) -> tuple[Group, ...]:
    members: dict[tuple[int, int | None], list[PredictedImage]] = {}
    for one in images:
        if by_nodule and one.image.nodule is None:
            continue
        members.setdefault((one.image.patient, one.image.nodule if by_nodule else None), []).append(one)
    groups = []
    for (patient, nodule), those in sorted(members.items(), key=lambda item: (item[0][0], item[0][1] or 0)):
        known = [one for one in those if one.prediction is not None]
        logits_NK = np.array([one.prediction.logits for one in known if one.prediction is not None])
        groups.append(
            Group(
                patient=patient,
                nodule=nodule,
                members=tuple(those),
                prediction=prediction_of(logits_NK, rules) if known else None,
            )
        )
    return tuple(groups)
