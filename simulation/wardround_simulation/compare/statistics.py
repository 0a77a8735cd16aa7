"""What the rows of a comparison say together: means over folds with intervals, paired differences, never a best fold.

The draws of a fold (other noise, same patients) are averaged first. The folds of one split test disjoint patients;
another split tests the same patients again, in other company. So the interval is Student's t with the spread of
folds within their split, over the folds of *one* split: repeating the split makes the mean steadier and the spread
better known, but adds no patient. Training sets overlap between folds, which makes any such interval approximate
(Bengio and Grandvalet 2004).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wardround.text import epsilon_of

Row = Mapping[str, Any]
Fold = tuple[str, str]  # split, fold


@dataclass(frozen=True, kw_only=True)
class FoldMean:
    """A mean over folds. `low` and `high` are None with fewer than two folds in every split; `by_fold` holds each
    fold's own value.
    """

    value: float
    low: float | None
    high: float | None
    by_fold: Mapping[Fold, float]

    @property
    def folds(self) -> int:
        """How many folds it is the mean of, over all splits."""
        return len(self.by_fold)


def mean_over_folds(by_fold: Mapping[Fold, float]) -> FoldMean | None:
    """Mean and 95 % interval as in the module's docstring; None without a fold."""
    if not by_fold:
        return None
    value = math.fsum(by_fold.values()) / len(by_fold)
    by_split: dict[str, list[float]] = {}
    for (split, _), one in by_fold.items():
        by_split.setdefault(split, []).append(one)
    freedom = len(by_fold) - len(by_split)
    if freedom < 1:
        return FoldMean(value=value, low=None, high=None, by_fold=dict(by_fold))
    from scipy.special import stdtrit

    squares = math.fsum((one - math.fsum(ones) / len(ones)) ** 2 for ones in by_split.values() for one in ones)
    reach = float(stdtrit(freedom, 0.975)) * math.sqrt(squares / freedom) / math.sqrt(len(by_fold) / len(by_split))
    return FoldMean(value=value, low=value - reach, high=value + reach, by_fold=dict(by_fold))


def by_fold(rows: Iterable[Row], value: Callable[[Row], float | None]) -> dict[Fold, float]:
    """`value` of each row, averaged within its fold (over draws, and over sites for the setting alone); rows
    without one are left out.
    """
    gathered: dict[Fold, list[float]] = {}
    for row in rows:
        one = value(row)
        if one is not None:
            gathered.setdefault((str(row["split"]), str(row["fold"])), []).append(one)
    return {fold: math.fsum(values) / len(values) for fold, values in sorted(gathered.items())}


def select(rows: Iterable[Row], **wanted: Any) -> list[Row]:
    """The rows whose columns have the wanted values; an epsilon is compared as a number."""
    epsilon = wanted.pop("epsilon", None)
    return [
        row
        for row in rows
        if all(row.get(key) == one for key, one in wanted.items())
        and (epsilon is None or epsilon_of(row["epsilon"]) == epsilon)
    ]


def epsilons_of(rows: Iterable[Row]) -> list[float]:
    """From no privacy to the strictest."""
    return sorted({epsilon_of(row["epsilon"]) for row in rows}, reverse=True)


def units_of(rows: Iterable[Row]) -> list[str]:
    """The units of the figures, the smallest (slice) first and the patient last."""
    return sorted({str(row.get("unit", "slice")) for row in rows}, key=lambda unit: (unit == "patient", unit))


def sites_of(rows: Iterable[Row]) -> list[str]:
    """Every site with test patients in some row."""
    return sorted({site for row in rows for site in row.get("sites") or {}})


def auc_of(row: Row) -> float | None:
    """AUC on all test patients of the row's fold."""
    return row.get("auc")


def start_of(row: Row) -> float | None:
    """AUC of the public start on the same patients."""
    return row.get("start_auc")


def gain_of(row: Row) -> float | None:
    """Paired difference to the public start."""
    return None if row.get("auc") is None or row.get("start_auc") is None else row["auc"] - row["start_auc"]


def at_site(site: str, key: str = "auc") -> Callable[[Row], float | None]:
    """`key` (auc or start_auc) on the test patients of one site."""
    return lambda row: ((row.get("sites") or {}).get(site) or {}).get(key)


def minus(left: Mapping[Fold, float], right: Mapping[Fold, float]) -> dict[Fold, float]:
    """Fold by fold, where both have a value."""
    return {fold: left[fold] - right[fold] for fold in left if fold in right}


def patients_tested(rows: Sequence[Row]) -> int:
    """Patients over the folds of one split, the fullest one."""
    by_split: dict[str, dict[str, int]] = {}
    for row in rows:
        by_split.setdefault(str(row["split"]), {})[str(row["fold"])] = int(row.get("patients") or 0)
    return max((sum(folds.values()) for folds in by_split.values()), default=0)
