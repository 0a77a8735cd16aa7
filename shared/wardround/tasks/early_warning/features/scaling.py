"""Scaling of records by public constants: every variable as its distance from a usual value, missing ones left missing.

The constants come from a vocabulary, never from a data set: a mean over patients would be a release about them, and two
sites would scale differently.

Shapes: N stays, T hours, V variables.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor, nn

from wardround.sources.records.vocabulary import Vocabulary

FARTHEST = 5.0  # scaled values beyond it are cut: a single wild number then moves no score far


def constants_sha256(vocabulary: Vocabulary) -> str:
    """The SHA-256 in hex of names, kinds, categories and scales of a vocabulary's variables, in their order."""
    facts = [(one.name, one.kind, one.categories, one.centre, one.spread, one.scale) for one in vocabulary.variables]
    return hashlib.sha256(repr(facts).encode()).hexdigest()


class ClinicalScale(nn.Module):
    """Rows in the units of a vocabulary -> scaled rows, as `Vocabulary.scaled` and cut at `FARTHEST`. NaN stays NaN.

    `constants` is a hash of what the networks take from the vocabulary: as an attribute it is part of the hash by which
    sites compare their networks. Codes and units of a vocabulary may change without changing a network.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        super().__init__()
        self.constants = constants_sha256(vocabulary)
        variables = vocabulary.variables
        logarithm = {"linear": lambda x: x, "log": math.log, "log1p": math.log1p}
        offsets = [logarithm[variable.scale](variable.centre) for variable in variables]
        divisors = [
            variable.spread if variable.scale == "linear" else math.log(variable.spread) for variable in variables
        ]
        self.register_buffer("offset_V", torch.tensor(offsets))
        self.register_buffer("divisor_V", torch.tensor(divisors))
        self.register_buffer("is_log_V", torch.tensor([variable.scale == "log" for variable in variables]))
        self.register_buffer("is_log1p_V", torch.tensor([variable.scale == "log1p" for variable in variables]))
        self.offset_V: Tensor
        self.divisor_V: Tensor
        self.is_log_V: Tensor
        self.is_log1p_V: Tensor

    def forward(self, rows_NTV: Tensor) -> Tensor:
        """Rows (N, T, V) in the vocabulary's units, NaN where nothing was measured -> scaled rows."""
        rows_NTV = rows_NTV.float()
        rows_NTV = torch.where(self.is_log_V, rows_NTV.log(), rows_NTV)
        rows_NTV = torch.where(self.is_log1p_V, rows_NTV.log1p(), rows_NTV)
        return ((rows_NTV - self.offset_V) / self.divisor_V).clamp(-FARTHEST, FARTHEST)
