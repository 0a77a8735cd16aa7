"""Adapts a prepared cohort to one study: labels are matched by name, and images are used only if their shape matches.

A cohort may have been prepared for a different study. A mismatch never raises an error, because an error in a round
would reveal, without noise, that the site has patients.
"""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np

from wardround.study.load import Study
from wardround_client.sources.cohort import Cohort, empty_cohort


def nobody(study: Study) -> Cohort:
    """Return a cohort without patients that has the study's labels and shape."""
    return empty_cohort(_shape_CHW(study), study.data.labels)


def differences(cohort: Cohort, study: Study) -> list[str]:
    """Return the differences between the prepared cohort and the study, one line each; empty if the cohort fits."""
    found = []
    prepared, asked = cohort.values_N.shape[1:], _shape_CHW(study)
    kind = _channels(cohort)
    if kind != study.data.channels and kind is not None:
        found.append(
            f"images are prepared as {kind}, but the study requires {study.data.channels}: no patient takes part"
        )
    elif prepared[0] != asked[0]:
        found.append(f"images have {prepared[0]} channels, but the study requires {asked[0]}: no patient takes part")
    if prepared[1:] != asked[1:]:
        sizes = " x ".join(map(str, prepared[1:])), " x ".join(map(str, asked[1:]))
        found.append(f"images are {sizes[0]} pixels, but the study requires {sizes[1]}: no patient takes part")
    unknown = [name for name in cohort.label_names if name not in study.data.labels]
    missing = [name for name in study.data.labels if name not in cohort.label_names]
    if unknown:
        found.append(f"images with labels that are not in the study count as unlabelled: {', '.join(unknown)}")
    if missing:
        found.append(f"labels of the study that are missing from the prepared data: {', '.join(missing)}")
    return found


def cohort_for(cohort: Cohort, study: Study) -> Cohort:
    """Return the cohort with the study's label names and indices; `nobody` if the channels or the image size differ.

    An image whose label is not in the study gets no label (-1).
    """
    if cohort.values_N.shape[1:] != _shape_CHW(study) or _channels(cohort) not in (None, study.data.channels):
        return nobody(study)
    if cohort.label_names == study.data.labels:
        return cohort
    place = {name: index for index, name in enumerate(study.data.labels)}
    index_of = np.array([*(place.get(name, -1) for name in cohort.label_names), -1], np.int16)  # [-1]: no label
    labels_N = index_of[cohort.labels_N]
    labels_N.flags.writeable = False
    return replace(cohort, labels_N=labels_N, label_names=study.data.labels)


def _channels(cohort: Cohort) -> str | None:
    """Return the channel setting that the images were prepared with; None if the cohort has no record of it."""
    try:
        return str(json.loads(cohort.prepared_by)["channels"])
    except (ValueError, TypeError, KeyError):
        return None


def _shape_CHW(study: Study) -> tuple[int, int, int]:
    return (study.data.channel_count, study.data.image_size, study.data.image_size)
