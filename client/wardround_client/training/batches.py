"""Training material of a site, and its batches: from a draw of patients to batches that fit the network.

Shapes: N rows, C channels, H and W pixels, D features, U drawn patients.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import numpy as np
import torch

from wardround.tasks.objective import Augmentation
from wardround_client.clipping.engines import ClippingEngine, PatientBatch
from wardround_client.privacy.sampling import Draw, PatientIndex, index_patients
from wardround_client.sources.cohort import AnyRows

IMAGES_PER_PHYSICAL_BATCH = 64  # used if the machine's memory was not measured
PRODUCTS_PER_BATCH = 1 << 22  # of a feature and an output: a head's gradient in float64 then takes 32 MiB
log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Material:
    """The data that training reads at a site. Unlabelled rows and held-out patients are not in `index`.

    `inputs_N` is the rows themselves (of images uint8 (N, C, H, W), of records float32 (N, T, V)), or float32 features
    (N, D) if the network's features are frozen.
    """

    inputs_N: AnyRows
    labels_N: np.ndarray
    index: PatientIndex

    @property
    def reads_features(self) -> bool:
        return len(self.inputs_N.shape) == 2


@dataclass(frozen=True, kw_only=True)
class SpeedPlan:
    """How a site computes a study's steps. Nothing here affects privacy."""

    engine: ClippingEngine
    images_per_batch: int = IMAGES_PER_PHYSICAL_BATCH


@dataclass(frozen=True, kw_only=True, eq=False)
class HeldOutRows:
    """Rows of patients on whom this study never trains, with labels and patients; of images uint8 (N, C, H, W).

    `extra` has the source's own columns of the cohort's table, N cells each.
    """

    values_N: AnyRows
    labels_N: np.ndarray
    patient_N: np.ndarray
    extra: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def material_of(inputs_N: AnyRows, labels_N: np.ndarray, patient_N: np.ndarray, rows_N: np.ndarray) -> Material:
    """Return the rows where `rows_N` is true as training material; `inputs_N` itself is not copied."""
    kept = np.flatnonzero(rows_N)
    index = index_patients(patient_N[kept])
    index = PatientIndex(rows_N=kept[index.rows_N], start_P1=index.start_P1)
    return Material(inputs_N=inputs_N, labels_N=labels_N, index=index)


def most_rows(material: Material, images_per_batch: int, outputs: int) -> int:
    """Return the number of rows that are computed together, which is also the most that one patient contributes.

    For whole rows it is the number that fits into memory. For features it is much larger, and smaller with each output.
    """
    if not material.reads_features:
        return images_per_batch
    return max(IMAGES_PER_PHYSICAL_BATCH, PRODUCTS_PER_BATCH // (material.inputs_N.shape[1] * outputs))


def physical_batches(
    material: Material, draw: Draw, device: torch.device, augment: Augmentation, most_rows: int
) -> Iterator[PatientBatch]:
    """Split a draw at patient boundaries into batches of at most `most_rows` rows, or of one patient with more rows.

    If a batch cannot be made, its patients are yielded one at a time, and patients whose batch fails are left out: a
    patient whose images cannot be read or augmented counts as zero, like a gradient that is not finite.

    `augment` is called for each patient separately, so that its result is the same whichever other patients were drawn,
    to the last bit.
    """
    first = 0
    while first < draw.units:
        last = first + 1
        while last < draw.units and draw.start_U1[last + 1] - draw.start_U1[first] <= most_rows:
            last += 1
        yield from or_one_by_one(
            partial(_batch, material, draw, range(first, last), device, augment),
            [partial(_batch, material, draw, range(u, u + 1), device, augment) for u in range(first, last)],
        )
        first = last


def _batch(material: Material, draw: Draw, units: range, device: torch.device, augment: Augmentation) -> PatientBatch:
    rows = draw.rows_N[draw.start_U1[units.start] : draw.start_U1[units.stop]]
    starts = draw.start_U1[units.start : units.stop + 1] - draw.start_U1[units.start]
    inputs_N = torch.from_numpy(material.inputs_N[rows])
    spans = zip(starts[:-1], starts[1:], strict=True)
    return PatientBatch(
        inputs_N=torch.cat([augment(inputs_N[begin:end].to(device, copy=True)) for begin, end in spans]),
        labels_N=torch.from_numpy(material.labels_N[rows].astype(np.int64)).to(device),
        start_U1=torch.from_numpy(starts),
    )


def or_one_by_one(together: Callable[[], T], alone: Sequence[Callable[[], T]]) -> list[T]:
    """Return the result for all patients of a batch; if computing it raises, return each patient's result separately.

    Patients whose own computation raises are left out. An error caused by one patient's data must not remove the other
    patients' part of a sum, because the sum would then move by the parts of all of them. Engines give a patient alone
    the same bits as among others. The site's log records each error in full.
    """
    try:
        return [together()]
    except Exception:
        log.exception("a batch of %d patients failed; its patients are computed one at a time", len(alone))
    found: list[T] = []
    for one in alone:
        try:
            found.append(one())
        except Exception:
            log.exception("a patient failed and counts as zero in this step")
    return found
