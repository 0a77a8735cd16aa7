"""The rows of this site's cohort from which the surrogate learns: named outputs, and the model's decisions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from wardround.sources.images.study import image_data
from wardround.study.load import Study
from wardround.tasks.classification.explain.named_outputs import Readouts, measures
from wardround_client.site.site import open_cohort_of

MOST_ROWS = 1_500  # enough for a tree of eight leaves
AT_ONCE = 50


@dataclass(frozen=True, kw_only=True, eq=False)
class SiteRows:
    """Named outputs (N, K) in units of a reader, the model's decisions (N,) and the patients (N,)."""

    measures_NK: np.ndarray
    decisions_N: np.ndarray
    patient_N: np.ndarray


def site_rows(
    site: Path, study: Study, network: nn.Module, readouts: Readouts, progress: Callable[[str, int, int], None]
) -> SiteRows:
    """Read up to 1,500 rows of the cohort, of patients who do not object; labels are not read.

    Raises `DataError` if the cohort is damaged.
    """
    cohort = open_cohort_of(site, study)
    count = len(cohort.values_N)
    chosen_n: np.ndarray = np.unique(np.linspace(0, max(count - 1, 0), min(count, MOST_ROWS)).round().astype(int))
    measured, decided = [np.empty((0, len(readouts.bias_K)))], [np.empty(0, int)]
    for begin in range(0, len(chosen_n), AT_ONCE):
        images_NCHW = torch.from_numpy(np.array(cohort.values_N[chosen_n[begin : begin + AT_ONCE]]))
        with torch.no_grad():
            logits_NK = network(images_NCHW)
        measured.append(measures(readouts.raw(images_NCHW), image_data(study).spacing_mm).numpy())
        decided.append(((logits_NK[:, 0] > 0).long() if logits_NK.shape[1] == 1 else logits_NK.argmax(1)).numpy())
        progress("Reading the site's rows", begin + len(images_NCHW), len(chosen_n))
    return SiteRows(
        measures_NK=np.concatenate(measured),
        decisions_N=np.concatenate(decided),
        patient_N=cohort.patient_N[chosen_n],
    )
