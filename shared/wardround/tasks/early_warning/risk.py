"""The risk that a network sees, hour by hour, from what had been measured by then.

`gru` gives a risk at every hour by itself. A head over public features is asked anew at every hour, with the later
hours left out; it was trained on whole windows, so that its early risks are rougher.

Shapes: N stays, T hours, V variables.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from wardround.sources.records.vocabulary import Vocabulary
from wardround.tasks.early_warning.hourly_gru import HourlyGRU


def facts_of(vocabulary: Vocabulary) -> list[int]:
    """The columns of what holds for the whole stay and stands in hour 0."""
    return [column for column, one in enumerate(vocabulary.variables) if one.of_the_stay]


def rows_up_to(rows_NTV: Tensor, hours: int, facts: Sequence[int]) -> Tensor:
    """The rows as they were known after so many hours, as if these had been the last ones of the window.

    The known hours are moved to the end, except the columns `facts`, which stay in hour 0. Features that depend on how
    recent a value is are then those of a patient who has been here for `hours` hours.
    """
    known_NTV = torch.full_like(rows_NTV, torch.nan)
    known_NTV[:, rows_NTV.shape[1] - hours :] = rows_NTV[:, :hours]
    known_NTV[:, :, facts] = torch.nan
    known_NTV[:, 0, facts] = rows_NTV[:, 0, facts]
    return known_NTV


@torch.no_grad()
def risk_by_hour(network: nn.Module, rows_NTV: Tensor, hours: Sequence[int], vocabulary: Vocabulary) -> Tensor:
    """The logit after each of `hours` (1 .. T), (N, len(hours))."""
    if isinstance(network, HourlyGRU):
        return network(rows_NTV)[:, [hour - 1 for hour in hours]]
    facts = facts_of(vocabulary)
    return torch.cat([network(rows_up_to(rows_NTV, hour, facts)) for hour in hours], 1)
