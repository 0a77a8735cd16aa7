"""Random rows of records in a study's shape and units: for checks and timings, of no patient.

Shapes: N rows, T hours, V variables.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wardround.sources.records.study import RecordsData
from wardround.sources.records.vocabulary import load_vocabulary

MISSING_SHARE = 0.7  # of the values


def synthetic_rows(data: RecordsData, count: int, seed: int = 0) -> Tensor:
    """Return random rows, float32 (count, T, V), NaN where a value is missing, as most are. `seed` is no secret."""
    variables = load_vocabulary(data.vocabulary).variables
    generator = torch.Generator().manual_seed(seed)
    shape = (count, *data.row_shape)
    centre_V = torch.tensor([one.centre for one in variables])
    spread_V = torch.tensor([one.spread if one.scale == "linear" else one.centre / 2 for one in variables])
    rows_NTV = centre_V + spread_V * torch.randn(shape, generator=generator).clamp(-1.5, 1.5)
    for column, variable in enumerate(variables):
        if variable.kind == "event":
            rows_NTV[..., column] = 1.0
        elif variable.kind == "category":
            codes = torch.randint(0, len(variable.categories), shape[:2], generator=generator)
            rows_NTV[..., column] = codes.float()
        if variable.of_the_stay:
            rows_NTV[:, 1:, column] = torch.nan
    rows_NTV[torch.rand(shape, generator=generator) < MISSING_SHARE] = torch.nan
    return rows_NTV
