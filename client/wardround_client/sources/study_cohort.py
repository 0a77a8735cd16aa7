"""Adapts a prepared cohort to one study.

Labels are matched by name, and rows are used only if they were prepared as the study asks.

A cohort may have been prepared for a different study. A mismatch never raises an error, because an error in a round
would reveal, without noise, that the site has patients.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from wardround.study.load import Study
from wardround_client.sources.cohort import Cohort, empty_cohort
from wardround_client.sources.registry import source_of


def nobody(study: Study) -> Cohort:
    """Return a cohort without patients that has the study's labels and shape."""
    source = source_of(study.data)
    return empty_cohort(source.row_shape(study.data), study.data.labels, source.row_dtype(study.data))


def differences(cohort: Cohort, study: Study) -> list[str]:
    """Return the differences between the prepared cohort and the study, one line each; empty if the cohort fits."""
    found = source_of(study.data).differences(cohort, study.data)
    unknown = [name for name in cohort.label_names if name not in study.data.labels]
    missing = [name for name in study.data.labels if name not in cohort.label_names]
    if unknown:
        found.append(f"images with labels that are not in the study count as unlabelled: {', '.join(unknown)}")
    if missing:
        found.append(f"labels of the study that are missing from the prepared data: {', '.join(missing)}")
    return found


def cohort_for(cohort: Cohort, study: Study) -> Cohort:
    """Return the cohort with the study's label names and indices; `nobody` if it was prepared differently.

    A row whose label is not in the study gets no label (-1).
    """
    if not source_of(study.data).fits(cohort, study.data):
        return nobody(study)
    if cohort.label_names == study.data.labels:
        return cohort
    place = {name: index for index, name in enumerate(study.data.labels)}
    index_of = np.array([*(place.get(name, -1) for name in cohort.label_names), -1], np.int16)  # [-1]: no label
    labels_N = index_of[cohort.labels_N]
    labels_N.flags.writeable = False
    return replace(cohort, labels_N=labels_N, label_names=study.data.labels)
