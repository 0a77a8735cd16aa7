"""A severity score for intensive care, written by hand: how far measurements lie beyond usual limits.

Limits and weights are general medical knowledge in the spirit of published scores (SAPS, SOFA, APACHE); no patient's
data were used. The score by itself is the public start of `severity-head`, and its parts are features that a private
linear head may weigh anew.

Shapes: N stays, T hours, V variables, D features.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from wardround.sources.records.vocabulary import Vocabulary
from wardround.tasks.early_warning.features.summaries import StayStatistics, two_sided

LARGEST = 3.0  # of a part, in scaled units
WORST_SHARE = 0.7  # of the worst value of a stay beside its last one: an early crisis that has passed says less
LAST_WEIGHT, WORST_WEIGHT = 0.7, 0.3  # how a variable's weight is divided between its last and its worst value

HIGH = {  # variable: the upper limit, in scaled units (distance from the centre in spreads)
    "HR": 0.75, "RespRate": 0.5, "Temp": 1.5, "BUN": 0.5, "Creatinine": 0.6, "K": 1.2, "Na": 1.2, "Lactate": 0.4,
    "Bilirubin": 0.6, "WBC": 0.6, "Glucose": 1.2, "AST": 1.0, "FiO2": 0.5, "PaCO2": 1.0, "TroponinT": 0.5, "Mg": 1.0,
}  # fmt: skip
LOW = {  # variable: the lower limit, in scaled units
    "HR": -1.25, "MAP": -0.8, "SysABP": -1.0, "Temp": -1.2, "Na": -1.2, "K": -1.0, "HCO3": -0.6, "pH": -0.6,
    "Platelets": -0.8, "WBC": -1.2, "Albumin": -1.0, "HCT": -1.5, "Glucose": -1.2, "PaO2": -0.7, "SaO2": -1.0,
    "GCS": 0.75, "Urine": -0.3, "PaCO2": -1.0,
}  # fmt: skip
WEIGHT = {
    "GCS": 1.5, "Urine": 1.0, "BUN": 1.0, "Lactate": 1.0, "MAP": 0.6, "SysABP": 0.6, "HR": 0.5, "RespRate": 0.6,
    "pH": 0.7, "HCO3": 0.7, "Bilirubin": 0.7, "Platelets": 0.6, "Creatinine": 0.3, "FiO2": 0.7, "PaO2": 0.5,
    "Albumin": 0.5, "Na": 0.3, "K": 0.3, "WBC": 0.4, "Temp": 0.5, "Glucose": 0.3, "AST": 0.3, "TroponinT": 0.3,
    "HCT": 0.2, "SaO2": 0.4, "PaCO2": 0.2, "Mg": 0.2,
}  # fmt: skip
MEASURED_WEIGHT = 0.1  # of having been measured at all, for variables that are ordered for the very ill
MEASURED = ("Lactate", "Bilirubin", "Albumin", "TroponinT", "pH")

Measure = Literal["last", "lowest", "highest", "mean", "recent", "value", "measured"]


@dataclass(frozen=True, kw_only=True)
class SeverityPart:
    """One part of the score: how far `measure` of a variable lies above or below a limit, times `share`.

    Without a limit the measure itself is the part. `weight` is its public weight in the score.
    """

    variable: str
    measure: Measure
    weight: float
    above: float | None = None
    below: float | None = None
    share: float = 1.0


def severity_parts() -> tuple[SeverityPart, ...]:
    """The 80 parts of the score."""
    parts = []
    for name, limit in HIGH.items():
        weight = WEIGHT[name]
        parts.append(SeverityPart(variable=name, measure="last", above=limit, weight=LAST_WEIGHT * weight))
        worst = SeverityPart(
            variable=name, measure="highest", above=limit, share=WORST_SHARE, weight=WORST_WEIGHT * weight
        )
        parts.append(worst)
    for name, limit in LOW.items():
        weight = WEIGHT[name]
        parts.append(SeverityPart(variable=name, measure="last", below=limit, weight=LAST_WEIGHT * weight))
        worst = SeverityPart(
            variable=name, measure="lowest", below=limit, share=WORST_SHARE, weight=WORST_WEIGHT * weight
        )
        parts.append(worst)
    parts += [
        SeverityPart(variable="Urine", measure="mean", below=LOW["Urine"], weight=0.7),
        SeverityPart(variable="GCS", measure="highest", below=LOW["GCS"], weight=1.0),
        SeverityPart(variable="MechVent", measure="recent", weight=0.8),
        SeverityPart(variable="Age", measure="value", weight=0.7),
        SeverityPart(variable="Sex", measure="value", weight=0.0),
        SeverityPart(variable="Height", measure="value", weight=0.0),
        SeverityPart(variable="Weight", measure="value", weight=0.0),
    ]
    return (*parts, *(SeverityPart(variable=one, measure="measured", weight=MEASURED_WEIGHT) for one in MEASURED))


class SeverityScore(nn.Module):
    """The parts of the score as features, (N, 80), in the order of `parts`."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        super().__init__()
        self._parts = severity_parts()
        self.table = hashlib.sha256(repr(self._parts).encode()).hexdigest()  # part of the network's fingerprint
        self._columns = [vocabulary.index(part.variable) for part in self._parts]
        self._sex = vocabulary.index("Sex")

    @property
    def parts(self) -> tuple[SeverityPart, ...]:
        """What each of the features is."""
        return self._parts

    def of_statistics(self, found: StayStatistics, rows_NTV: Tensor) -> Tensor:
        """The parts of stays whose statistics are known, each between -`LARGEST` and `LARGEST`."""
        values = []
        for part, column in zip(self._parts, self._columns, strict=True):
            seen_N = found.count[:, column] > 0
            if part.measure == "measured":
                value_N = seen_N.float()
            elif part.measure == "value":
                value_N = two_sided(rows_NTV[:, 0, column]) if column == self._sex else found.first[:, column]
            else:
                value_N = getattr(found, part.measure)[:, column]
                if part.above is not None:
                    value_N = torch.where(seen_N, (value_N - part.above).clamp(min=0), 0.0)
                elif part.below is not None:
                    value_N = torch.where(seen_N, (part.below - value_N).clamp(min=0), 0.0)
            values.append(part.share * value_N)
        return torch.stack(values, 1).clamp(-LARGEST, LARGEST)

    def public_weights(self) -> Tensor:
        """The weights of the parts in the score, (80,)."""
        return torch.tensor([part.weight for part in self._parts])
