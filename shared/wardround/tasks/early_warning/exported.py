"""A risk model as it is exported to an ONNX file, and rows on which the file is compared with it.

Every operator of the features is part of the graph, so that a program outside needs the measurements alone.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from wardround.sources.records.study import records_data
from wardround.sources.records.synthetic_rows import synthetic_rows
from wardround.sources.records.vocabulary import load_vocabulary
from wardround.study.load import Study

SEED = 20262
FARTHEST = 100.0  # spreads from the centre, in the rows of values that nobody has


def exported(network: nn.Module, study: Study) -> tuple[nn.Module, None]:
    """Return the network: it maps rows to logits by itself. There is no distance of rows that are unlike the others."""
    return network, None


def fixed_rows(study: Study, count: int) -> np.ndarray:
    """Return `count` rows of the study's shape, float32 (N, T, V), always the same ones.

    A quarter each: usual rows with most values missing, rows in which nothing is missing, rows with values far beyond
    any range, and rows with one measurement or none.
    """
    data = records_data(study)
    each = -(-count // 4)
    usual_NTV = synthetic_rows(data, each, SEED)
    many_NTV = torch.stack([synthetic_rows(data, each, SEED + 1 + number) for number in range(24)])
    known_NTV = many_NTV.nan_to_num(-torch.inf).amax(0)  # of 24 draws of each value, one is hardly ever missing
    known_NTV = torch.where(known_NTV.isinf(), torch.nan, known_NTV)
    variables = load_vocabulary(data.vocabulary).variables
    away_V = torch.tensor([0.0 if one.kind in ("category", "event") else FARTHEST * one.spread for one in variables])
    sign_N11 = torch.where(torch.arange(each) % 2 == 0, 1.0, -1.0)[:, None, None]
    far_NTV = synthetic_rows(data, each, SEED + 100) + sign_N11 * away_V
    few_NTV = torch.full_like(usual_NTV, torch.nan)
    for number in range(1, each):
        hour, column = number % data.window_hours, number % len(variables)
        few_NTV[number, 0 if variables[column].of_the_stay else hour, column] = variables[column].centre
    return torch.cat([usual_NTV, known_NTV, far_NTV, few_NTV])[:count].numpy()
