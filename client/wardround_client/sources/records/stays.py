"""The patients of a site: when each was admitted, their outcome, and what is known of them once for the whole stay.

Names of arrays: P patients, N measurements.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from wardround_client.sources.records.events import Events

NO_LABEL = -1


@dataclass(frozen=True, kw_only=True)
class Stays:
    """One stay for each patient, in the order of the files."""

    ids: tuple[str, ...] = field(repr=False)
    admission_s_P: np.ndarray  # float64, as `Times.seconds_N`; NaN: unknown
    zoned_P: np.ndarray  # bool: the time of admission names its zone
    label_P: np.ndarray  # int16, index into data.labels; NO_LABEL
    outcome_s_P: np.ndarray  # float64, when the outcome happened, since admission; NaN: unknown
    events: Events  # numbers for the whole stay, from the table of patients; at second 0

    def __len__(self) -> int:
        return len(self.ids)


def seconds_since_admission(
    stays: Stays, patient_N: np.ndarray, seconds_N: np.ndarray, zoned_N: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return how long after admission each time is.

    Args:
        stays: The patients.
        patient_N: Index of the patient whose time it is.
        seconds_N: The times, as `Times.seconds_N`.
        zoned_N: Whether each time names its zone.

    Returns:
        Seconds since admission (NaN where it is unknown), whether the patient's admission is unknown, and whether only
        one of the two times names its zone, so that they cannot be compared.
    """
    admission_N = stays.admission_s_P[patient_N]
    unknown_N = np.isnan(admission_N)
    mixed_N = ~unknown_N & ~np.isnan(seconds_N) & (stays.zoned_P[patient_N] != zoned_N)
    return np.where(mixed_N, np.nan, seconds_N - admission_N), unknown_N, mixed_N
