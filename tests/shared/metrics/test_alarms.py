"""AUPRC and alarm burden against counts by hand and a plain definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wardround.metrics.alarms import alarm_burdens, average_precision


def by_definition(scores_N: list[int], labels_N: list[int]) -> float:
    """The mean over events of the share of events among all patients with at least this score."""
    rows = list(zip(scores_N, labels_N, strict=True))
    shares = []
    for score, label in rows:
        if label:
            reached = [other for level, other in rows if level >= score]
            shares.append(sum(reached) / len(reached))
    return float(np.mean(shares))


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 1)), min_size=1, max_size=30))
def test_average_precision_is_its_definition(rows: list[tuple[int, int]]) -> None:
    scores_N, labels_N = [one for one, _ in rows], [one for _, one in rows]
    found = average_precision(scores_N, labels_N)
    assert found is None if not any(labels_N) else found == pytest.approx(by_definition(scores_N, labels_N))


def test_alarms_for_each_event_count_those_that_reach_the_threshold() -> None:
    scores_N = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0]
    labels_N = [1, 0, 1, 0, 0, 1, 0, 0, 0, 1]
    half, most, every = alarm_burdens(scores_N, labels_N, (0.5, 0.75, 1.0))
    assert (half.threshold, half.alarms_per_event, half.alarms_per_100) == (0.7, 1.5, 30)
    assert (most.threshold, most.alarms_per_event) == (0.4, 2.0)
    assert (every.alarms_per_event, every.alarms_per_100) == (2.5, 100)


def test_without_an_event_there_is_no_burden() -> None:
    assert alarm_burdens([0.1, 0.2], [0, 0]) == [] and average_precision([0.1], [0]) is None
    assert alarm_burdens([], []) == []
