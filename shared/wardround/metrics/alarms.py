"""What alarms cost: precision over all thresholds, and how many alarms a sensitivity takes for each true event.

Shapes: N rows (patients). scores_N are any numbers that grow with the risk; labels_N are 0 or 1. Figures that need both
classes are None without them. Invalid shapes, labels or scores raise `ValueError`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from wardround.metrics.ranking import checked

SENSITIVITIES = (0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True, kw_only=True)
class AlarmBurden:
    """The highest threshold that finds at least `sensitivity` of the events, and what it costs there.

    An alarm is a patient whose score reaches the threshold. `alarms_per_event` counts the alarms for each event that
    they find, itself included: 1 would be no false alarm.
    """

    sensitivity: float
    threshold: float
    alarms_per_event: float
    alarms_per_100: float  # of 100 patients, how many raise an alarm

    def to_json(self) -> dict[str, float]:
        """Return the fields."""
        return asdict(self)


def average_precision(scores_N: ArrayLike, labels_N: ArrayLike) -> float | None:
    """The area under the curve of precision over sensitivity (AUPRC): the mean precision at each event, ties together.

    A useless score has the share of events. None without an event.
    """
    _, found_K, alarms_K = _by_threshold(scores_N, labels_N)
    if not len(found_K) or found_K[-1] == 0:
        return None
    precision_K, new_K = found_K / alarms_K, np.diff(found_K, prepend=0)
    return float((precision_K * new_K).sum() / found_K[-1])


def alarm_burdens(
    scores_N: ArrayLike, labels_N: ArrayLike, sensitivities: Sequence[float] = SENSITIVITIES
) -> list[AlarmBurden]:
    """The burden at each of the sensitivities, in their order; none without an event."""
    threshold_K, found_K, alarms_K = _by_threshold(scores_N, labels_N)
    if not len(found_K) or found_K[-1] == 0:
        return []
    burdens = []
    for sensitivity in sensitivities:
        place = int(np.searchsorted(found_K, sensitivity * found_K[-1] - 1e-9))
        burdens.append(
            AlarmBurden(
                sensitivity=sensitivity,
                threshold=float(threshold_K[place]),
                alarms_per_event=float(alarms_K[place] / found_K[place]),
                alarms_per_100=float(100 * alarms_K[place] / alarms_K[-1]),
            )
        )
    return burdens


def burden_rows(burdens: Sequence[AlarmBurden]) -> list[list[str]]:
    """The burdens as cells for people: sensitivity, threshold, alarms for each event found, alarms of 100 patients."""
    return [
        [
            f"{one.sensitivity:.0%}",
            f"{one.threshold:.3f}",
            f"{one.alarms_per_event:.1f}",
            f"{one.alarms_per_100:.0f}",
        ]
        for one in burdens
    ]


def _by_threshold(scores_N: ArrayLike, labels_N: ArrayLike) -> tuple[np.ndarray, Any, Any]:
    """Descending thresholds, one for each different score, with events and patients that reach them."""
    scores_N, positive_N = checked(scores_N, labels_N)
    order = np.argsort(-scores_N, kind="stable")
    sorted_N, events_N = scores_N[order], np.cumsum(positive_N[order])
    last_K = np.flatnonzero(np.diff(sorted_N, append=-np.inf) != 0)
    return sorted_N[last_K], events_N[last_K], last_K + 1
