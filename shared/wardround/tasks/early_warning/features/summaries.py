"""Summaries of a stay: public functions of its measurements that need no training.

For every measured variable: the last value, the mean, the lowest and the highest; how often it was measured, and
whether it was not measured at all; for treatments, how recent the last record is. For facts about the stay: their
values. None of them depends on another patient.

Shapes: N stays, T hours, V variables, D features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from wardround.sources.records.vocabulary import Vocabulary
from wardround.tasks.early_warning.features.scaling import ClinicalScale

Statistic = Literal["last", "mean", "lowest", "highest", "count", "missing", "recent", "value", "category"]

COUNT_SCALE = 4.0  # of ln(1 + count): 48 hourly values are about 1
RECENT_HOURS = 12.0  # a treatment's record counts half after about 8 hours


@dataclass(frozen=True, kw_only=True)
class Feature:
    """What one number of a row of features is. `category` is the code that it marks, for the statistic "category"."""

    variable: str
    statistic: Statistic
    category: int | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class StayStatistics:
    """Statistics of scaled rows by variable, (N, V) each; 0 where a variable was never measured."""

    last: Tensor
    mean: Tensor
    lowest: Tensor
    highest: Tensor
    count: Tensor
    recent: Tensor  # exp(-hours since the last value / RECENT_HOURS)
    first: Tensor  # the value in hour 0, of variables of the stay

    @property
    def measured(self) -> Tensor:
        """1 where there is a value, else 0."""
        return (self.count > 0).float()


def stay_statistics(scaled_NTV: Tensor) -> StayStatistics:
    """Return the statistics over the hours of scaled rows (N, T, V)."""
    hours = scaled_NTV.shape[1]
    there_NTV = ~scaled_NTV.isnan()
    values_NTV = torch.where(there_NTV, scaled_NTV, 0.0)
    count_NV = there_NTV.sum(1)
    seen_NV = count_NV > 0
    hour_T = torch.arange(hours, device=scaled_NTV.device)[None, :, None]
    last_hour_NV = torch.where(there_NTV, hour_T, -1).amax(1)
    last_NV = values_NTV.gather(1, last_hour_NV.clamp(min=0)[:, None]).squeeze(1)
    return StayStatistics(
        last=torch.where(seen_NV, last_NV, 0.0),
        mean=values_NTV.sum(1) / count_NV.clamp(min=1),
        lowest=torch.where(seen_NV, torch.where(there_NTV, values_NTV, torch.inf).amin(1), 0.0),
        highest=torch.where(seen_NV, torch.where(there_NTV, values_NTV, -torch.inf).amax(1), 0.0),
        count=count_NV.float(),
        recent=torch.where(seen_NV, torch.exp(-(hours - 1 - last_hour_NV) / RECENT_HOURS), 0.0),
        first=values_NTV[:, 0],
    )


class StaySummaries(nn.Module):
    """The summaries of a stay for any vocabulary, (N, D); `parts` says what each of the D numbers is.

    Args:
        vocabulary: The variables of a row.
        share: A factor of all features but those of categories. A clipped gradient favours large features.
        category_share: A factor of the features that mark one of several categories.
    """

    def __init__(self, vocabulary: Vocabulary, *, share: float, category_share: float) -> None:
        super().__init__()
        self.share, self.category_share = share, category_share
        self.scale = ClinicalScale(vocabulary)
        variables = list(enumerate(vocabulary.variables))
        self._measured = [column for column, one in variables if one.kind in ("series", "sum")]
        self._hourly = [column for column, one in variables if not one.of_the_stay]
        self._treatments = [column for column, one in variables if one.kind == "event"]
        self._facts = [column for column, one in variables if one.kind == "static"]
        self._binary = [column for column, one in variables if one.kind == "category" and len(one.categories) == 2]
        self._many = [column for column, one in variables if one.kind == "category" and len(one.categories) > 2]
        self._codes = [len(vocabulary.variables[column].categories) for column in self._many]
        self._parts = tuple(self._features(vocabulary))

    @property
    def parts(self) -> tuple[Feature, ...]:
        """What each of the features is."""
        return self._parts

    def _features(self, vocabulary: Vocabulary) -> list[Feature]:
        names = vocabulary.names
        statistics: tuple[Statistic, ...] = ("last", "mean", "lowest", "highest")
        found = [Feature(variable=names[c], statistic=one) for one in statistics for c in self._measured]
        hourly: tuple[Statistic, ...] = ("count", "missing")
        found += [Feature(variable=names[c], statistic=one) for one in hourly for c in self._hourly]
        found += [Feature(variable=names[c], statistic="recent") for c in self._treatments]
        found += [Feature(variable=names[c], statistic="value") for c in self._facts + self._binary]
        found += [Feature(variable=names[c], statistic="missing") for c in self._facts + self._binary]
        for column, codes in zip(self._many, self._codes, strict=True):
            found += [Feature(variable=names[column], statistic="category", category=code) for code in range(codes)]
        return found

    def forward(self, rows_NTV: Tensor) -> Tensor:
        """Rows (N, T, V) in the vocabulary's units -> summaries (N, D)."""
        return self.of_statistics(stay_statistics(self.scale(rows_NTV)), rows_NTV)

    def of_statistics(self, found: StayStatistics, rows_NTV: Tensor) -> Tensor:
        """The summaries of rows whose statistics are known."""
        missing_NV = 1 - found.measured
        sex_like_N = [two_sided(rows_NTV[:, 0, column]) for column in self._binary]
        parts = [one[:, self._measured] for one in (found.last, found.mean, found.lowest, found.highest)]
        parts += [torch.log1p(found.count[:, self._hourly]) / COUNT_SCALE, missing_NV[:, self._hourly]]
        parts += [found.recent[:, self._treatments], found.first[:, self._facts]]
        parts += [one[:, None] for one in sex_like_N]
        parts += [missing_NV[:, self._facts + self._binary]]
        summaries_ND = self.share * torch.cat(parts, 1)
        chosen = [
            rows_NTV[:, 0, column, None] == torch.arange(codes, device=rows_NTV.device)
            for column, codes in zip(self._many, self._codes, strict=True)
        ]
        return torch.cat([summaries_ND, *(self.category_share * one.float() for one in chosen)], 1)


def two_sided(codes_N: Tensor) -> Tensor:
    """Codes of two categories as numbers: -1 for the first, 1 for the second, 0 if it is not known."""
    return torch.where(codes_N == 0, -1.0, torch.where(codes_N == 1, 1.0, 0.0))
