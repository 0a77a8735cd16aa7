"""What a risk is made of: the part of each variable in the logit of one stay.

For a head over public features the parts are exact: weight times feature, summed by variable, and their sum with the
intercept is the logit. For `gru` they are integrated gradients (Sundararajan et al. 2017) from a baseline at which
every value is at its centre while it stays known which values were measured; their sum is the difference of the two
logits up to the error of the integral, which is reported.

Shapes: N stays, T hours, V variables, D features or inputs.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from wardround.sources.records.vocabulary import Variable, Vocabulary
from wardround.tasks.early_warning.hourly_gru import HourlyGRU
from wardround.tasks.early_warning.public_head import PublicFeatureHead

STEPS = 32  # of the integral; more change no part by a hundredth of the largest
LEAST_HOURLY = 6  # variables measured in the window, below which a stay is refused
LEAST_SHARE = 0.5  # of the columns of a table


@dataclass(frozen=True, kw_only=True)
class VariablePart:
    """One variable's part in the logit: above 0 it raises the risk. `values` are what was measured, hour by hour."""

    variable: str
    title: str
    unit: str
    part: float
    values: tuple[tuple[int, float], ...]  # (hour, value)
    category: str | None  # the name of the category, for a variable with categories
    normal: tuple[float, float] | None

    @property
    def said(self) -> str:
        """What was measured, in a few words."""
        if self.category is not None:
            return self.category
        if not self.values:
            return "not measured"
        numbers = [value for _, value in self.values]
        unit = f" {self.unit}" if self.unit not in ("", "1") else ""
        if len(numbers) == 1:
            return f"{numbers[0]:.4g}{unit}"
        return f"last {numbers[-1]:.4g}{unit}, {min(numbers):.4g} to {max(numbers):.4g}, {len(numbers)} hours"


@dataclass(frozen=True, kw_only=True)
class RiskParts:
    """All parts of one logit, the largest first. `rest` is what no variable adds: intercept, or logit of the baseline.

    `error` is the difference between the logit and the sum of rest and parts: rounding, or the error of the integral.
    """

    logit: float
    rest: float
    parts: tuple[VariablePart, ...]
    method: str
    error: float


def too_little(row_TV: np.ndarray, vocabulary: Vocabulary) -> str | None:
    """Why the model should not be asked about a stay, in words; None if enough is known.

    A network also gives a number where nothing is known: the risk of an average patient, which is no statement.
    """
    known_V = ~np.isnan(row_TV).all(0)
    hourly_V = np.array([not one.of_the_stay for one in vocabulary.variables])
    if hourly_V.any():
        known = int(known_V[hourly_V].sum())
        if known < LEAST_HOURLY:
            return f"{known} of {int(hourly_V.sum())} measurements are known, and the model needs {LEAST_HOURLY}"
        return None
    known, all_ = int(known_V.sum()), len(known_V)
    if known < LEAST_SHARE * all_:
        return f"{known} of {all_} columns are known, and the model needs half of them"
    return None


def missing(row_TV: np.ndarray, vocabulary: Vocabulary) -> tuple[str, ...]:
    """The titles of the variables without any value."""
    never_V = np.isnan(row_TV).all(0)
    return tuple(one.title for one, never in zip(vocabulary.variables, never_V, strict=True) if never)


def risk_parts(network: nn.Module, row_TV: np.ndarray, vocabulary: Vocabulary) -> RiskParts:
    """The parts of one stay's logit."""
    rows_1TV = torch.from_numpy(np.ascontiguousarray(row_TV[None]))
    if isinstance(network, PublicFeatureHead):
        return _exact(network, rows_1TV, vocabulary)
    if isinstance(network, HourlyGRU):
        return _integrated(network, rows_1TV, vocabulary)
    raise TypeError(f"{type(network).__name__} is no network for early warning")


def _exact(network: PublicFeatureHead, rows_1TV: Tensor, vocabulary: Vocabulary) -> RiskParts:
    with torch.no_grad():
        features_D = network.features(rows_1TV)[0].double()
        terms_D = (network.head.weight[0].double() * features_D).tolist()
        logit = float(network(rows_1TV))
    of: dict[str, float] = defaultdict(float)
    for part, term in zip(network.public.parts, terms_D, strict=True):
        of[part.variable] += term
    return _parts(of, float(network.head.bias.detach()), logit, "exact", rows_1TV, vocabulary)


def _integrated(network: HourlyGRU, rows_1TV: Tensor, vocabulary: Vocabulary) -> RiskParts:
    from captum.attr import IntegratedGradients

    with torch.no_grad():
        hours_1TD, facts_1S = network.prepare(rows_1TV)
    width = network.prepare.hour_width // 3  # last values, masks, recency side by side
    base_1TD = hours_1TD.clone()
    base_1TD[..., :width] = 0.0
    base_1S = torch.zeros_like(facts_1S)

    def last_logit(hours_NTD: Tensor, facts_NS: Tensor) -> Tensor:
        return network.of_prepared(hours_NTD, facts_NS)[:, -1]

    found = IntegratedGradients(last_logit).attribute(
        (hours_1TD, facts_1S), baselines=(base_1TD, base_1S), n_steps=STEPS, internal_batch_size=STEPS
    )
    values_V, facts_S = found[0][0, :, :width].sum(0).tolist(), found[1][0].tolist()
    of: dict[str, float] = defaultdict(float)
    for name, part in zip(network.prepare.hour_names, values_V, strict=True):
        of[name] += part
    for name, part in zip(network.prepare.fact_names, facts_S, strict=True):
        of[name] += part
    with torch.no_grad():
        rest, logit = float(last_logit(base_1TD, base_1S)), float(last_logit(hours_1TD, facts_1S))
    return _parts(of, rest, logit, "integrated gradients", rows_1TV, vocabulary)


def _parts(
    of: dict[str, float], rest: float, logit: float, method: str, rows_1TV: Tensor, vocabulary: Vocabulary
) -> RiskParts:
    row_TV = rows_1TV[0].numpy()
    parts = [
        _variable_part(variable, of[variable.name], row_TV[:, column])
        for column, variable in enumerate(vocabulary.variables)
        if variable.name in of
    ]
    parts.sort(key=lambda one: -abs(one.part))
    error = logit - rest - sum(one.part for one in parts)
    return RiskParts(logit=logit, rest=rest, parts=tuple(parts), method=method, error=error)


def _variable_part(variable: Variable, part: float, values_T: np.ndarray) -> VariablePart:
    there = np.flatnonzero(~np.isnan(values_T))
    category = None
    if variable.kind == "category" and len(there):
        category = variable.categories[int(values_T[there[0]])]
    return VariablePart(
        variable=variable.name,
        title=variable.title,
        unit=variable.unit,
        part=part,
        values=tuple((int(hour), float(values_T[hour])) for hour in there),
        category=category,
        normal=variable.normal,
    )
