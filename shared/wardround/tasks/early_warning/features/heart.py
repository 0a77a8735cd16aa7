"""Weights written by hand for an examination for heart disease: the public start of `tabular-head`.

They follow what textbooks say about angina, exercise tests and fluoroscopy; no patient's data were used. Whoever wrote
them knows the literature on the data set after which the vocabulary "heart" is named, so that the start by itself is
no evidence about it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wardround.tasks.early_warning.features.summaries import Feature

VALUE_WEIGHT = {  # of a scaled number, or of the second of two categories against the first
    "age": 0.3, "sex": 0.5, "trestbps": 0.15, "chol": 0.2, "fbs": 0.15, "thalach": -0.5, "exang": 0.5,
    "oldpeak": 0.6, "ca": 0.8,
}  # fmt: skip
CATEGORY_WEIGHT = {  # by code
    "cp": (-0.3, -1.0, -0.6, 1.2),
    "restecg": (0.0, 0.3, 0.2),
    "slope": (-0.5, 0.4, 0.4),
    "thal": (-0.7, 0.5, 0.8),
}
INTERCEPT = 0.4


def heart_weights(parts: tuple[Feature, ...]) -> Tensor:
    """The weights of features before they are multiplied by their shares, (D,); 0 for features that have none."""

    def weight(part: Feature) -> float:
        if part.statistic == "value":
            return VALUE_WEIGHT.get(part.variable, 0.0)
        if part.category is not None and part.variable in CATEGORY_WEIGHT:
            return CATEGORY_WEIGHT[part.variable][part.category]
        return 0.0

    return torch.tensor([weight(part) for part in parts])
