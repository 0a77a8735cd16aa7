"""Poisson sampling by patient: which patients take part in a step, and which of their images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wardround_client.privacy.plan import PrivacyPlan
from wardround_client.privacy.secure_random import SecretRandom


@dataclass(frozen=True, kw_only=True)
class PatientIndex:
    """The rows of every patient.

    `rows_N` is sorted by patient; patient p owns rows_N[start_P1[p] : start_P1[p + 1]].
    """

    rows_N: np.ndarray
    start_P1: np.ndarray

    @property
    def patients(self) -> int:
        """Number of patients. It is private: it may size a loop but must not enter a public number."""
        return len(self.start_P1) - 1

    def rows_of(self, patient: int | np.integer) -> np.ndarray:
        return self.rows_N[self.start_P1[patient] : self.start_P1[patient + 1]]


@dataclass(frozen=True, kw_only=True)
class Draw:
    """The patients drawn for one step.

    `rows_N` are rows of the cohort, unit after unit; unit u owns rows_N[start_U1[u] : start_U1[u + 1]].
    """

    rows_N: np.ndarray
    start_U1: np.ndarray

    @property
    def units(self) -> int:
        return len(self.start_U1) - 1


def index_patients(patient_N: np.ndarray) -> PatientIndex:
    """Group rows by patient.

    `patient_N` holds an integer for each row; patients without a row do not appear.
    """
    rows_N = np.argsort(patient_N, kind="stable")
    _, first = np.unique(np.asarray(patient_N)[rows_N], return_index=True)
    return PatientIndex(rows_N=rows_N, start_P1=np.append(first, len(rows_N)))


def draw_patients(
    plan: PrivacyPlan, index: PatientIndex, randomness: SecretRandom, most_images: int | None = None
) -> Draw:
    """Draw every patient independently with probability `plan.sampling_rate` (Poisson), then k images of each.

    k is `plan.images_per_patient`, drawn without replacement and cycled if the patient has fewer, or all of the
    patient's images. `most_images` limits the images of each patient, so that no patient takes more memory than any
    other may. Whether a patient is drawn does not depend on any other patient's data, as the subsampled Gaussian's
    accounting assumes (Mironov, Talwar, Zhang 2019). An empty draw is a valid draw.
    """
    if plan.sampling_rate < 1:
        drawn = np.flatnonzero(randomness.uniform(index.patients) < plan.sampling_rate)
    else:
        drawn = np.arange(index.patients)
    if plan.images_per_patient is None:
        units = [_at_most(index.rows_of(patient), most_images, randomness) for patient in drawn]
    else:
        count = min(plan.images_per_patient, most_images or plan.images_per_patient)
        units = [_choose(index.rows_of(patient), count, randomness) for patient in drawn]
    start_U1 = np.concatenate([[0], np.cumsum([len(unit) for unit in units])]).astype(np.int64)
    rows_N = np.concatenate(units) if units else np.empty(0, dtype=np.int64)
    return Draw(rows_N=rows_N, start_U1=start_U1)


def _at_most(rows: np.ndarray, most: int | None, randomness: SecretRandom) -> np.ndarray:
    return rows if most is None or len(rows) <= most else _choose(rows, most, randomness)


def _choose(rows: np.ndarray, count: int, randomness: SecretRandom) -> np.ndarray:
    return np.resize(rows[randomness.permutation(len(rows))], count)
