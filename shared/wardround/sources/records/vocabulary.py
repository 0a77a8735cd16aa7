"""Vocabularies: the variables of patients' records that a study reads, and the public facts about each of them.

A vocabulary is a TOML file in `vocabularies/`. It ships with the program and holds no statistic of a data set: names
and LOINC codes, units and their conversions, which values are possible, and constants from general medical knowledge
by which a network scales.

Shapes: N patients, T hours, V variables.
"""

from __future__ import annotations

import functools
import hashlib
import math
import tomllib
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Literal, get_args

import numpy as np

from wardround.errors import StudyError

FOLDER = "vocabularies"
SHIPPED = ("icu", "heart")

Kind = Literal["series", "sum", "event", "static", "category"]
Scale = Literal["linear", "log", "log1p"]


@dataclass(frozen=True, kw_only=True)
class UnitConversion:
    """Another unit of a variable: a value in it, times `factor` plus `offset`, is in the variable's own unit."""

    unit: str
    factor: float = 1.0
    offset: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """A range of values that only a known mistake explains, with its repair: value * factor + offset."""

    low: float
    high: float
    factor: float = 1.0
    offset: float = 0.0
    reason: str = "unit"

    def covers(self, value: float) -> bool:
        """Return whether the value lies in the range, its ends included."""
        return self.low <= value <= self.high


@dataclass(frozen=True, kw_only=True)
class Variable:
    """One variable.

    `kind`: "series" is measured again and again (an hour has the mean), "sum" adds up within an hour, "event" is 1 in
    an hour in which it was recorded, "static" is one number for the stay, "category" one code 0 .. K - 1 for the stay.
    """

    name: str
    title: str
    unit: str = ""
    kind: Kind = "series"
    loinc: tuple[str, ...] = ()
    also: tuple[str, ...] = ()  # other names of it; the strongest first, `name` itself is stronger than all
    lowest: float = -math.inf  # a value below it is impossible
    highest: float = math.inf
    centre: float = 0.0
    spread: float = 1.0
    scale: Scale = "linear"
    normal: tuple[float, float] | None = None
    categories: tuple[str, ...] = ()
    codes: tuple[str, ...] = ()  # how data write the categories, in their order; empty: 0, 1, ...
    units: tuple[UnitConversion, ...] = ()
    mistakes: tuple[Mistake, ...] = ()
    missing: tuple[float, ...] = ()  # values that mean "not measured"

    @property
    def of_the_stay(self) -> bool:
        """Whether it has one value for the whole stay, which stands in hour 0."""
        return self.kind in ("static", "category")

    def scaled(self, values: np.ndarray) -> np.ndarray:
        """Return values in the variable's unit by its public constants: 0 is the centre. NaN stays NaN.

        linear: (x - centre) / spread; log: (ln x - ln centre) / ln spread; log1p: the same of 1 + x and 1 + centre, by
        ln spread.
        """
        if self.scale == "log":
            return (np.log(values) - math.log(self.centre)) / math.log(self.spread)
        if self.scale == "log1p":
            return (np.log1p(values) - math.log1p(self.centre)) / math.log(self.spread)
        return (values - self.centre) / self.spread


@dataclass(frozen=True, kw_only=True)
class Order:
    """Two variables of which `lower` is never above `upper` at the same time; otherwise neither value is right."""

    lower: str
    upper: str


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """The variables of one kind of records, in the order of a cohort's columns."""

    name: str
    title: str
    sha256: str  # of the file
    variables: tuple[Variable, ...]
    orders: tuple[Order, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the variables."""
        return tuple(variable.name for variable in self.variables)

    def index(self, name: str) -> int:
        """Return the column of a variable. Raises `KeyError` for an unknown name."""
        try:
            return self.names.index(name)
        except ValueError:
            raise KeyError(name) from None

    def scaled(self, values_NTV: np.ndarray) -> np.ndarray:
        """Return rows (..., V) with every variable scaled by its public constants, in the same dtype. NaN stays NaN."""
        out = np.empty_like(values_NTV)
        with np.errstate(divide="ignore", invalid="ignore"):
            for column, variable in enumerate(self.variables):
                out[..., column] = variable.scaled(values_NTV[..., column])
        return out


@functools.cache
def load_vocabulary(name: str) -> Vocabulary:
    """Return a vocabulary that ships, by its name. Raises `StudyError` for an unknown one."""
    if name not in SHIPPED:
        raise StudyError(f"data.vocabulary: {name!r} is not known; the vocabularies are {', '.join(SHIPPED)}")
    content = (files(__package__) / FOLDER / f"{name}.toml").read_bytes()
    table = tomllib.loads(content.decode())
    return Vocabulary(
        name=name,
        title=table["title"],
        sha256=hashlib.sha256(content).hexdigest(),
        variables=tuple(_variable(key, entry) for key, entry in table["variables"].items()),
        orders=tuple(Order(**one) for one in table.get("orders", ())),
    )


def _variable(name: str, entry: dict[str, Any]) -> Variable:
    """Return a variable from its table in the file. The files ship, so a fault in one is a `ValueError`."""
    entry = dict(entry)
    if entry.get("kind", "series") not in get_args(Kind) or entry.get("scale", "linear") not in get_args(Scale):
        raise ValueError(f"{name}: unknown kind or scale")
    units = tuple(UnitConversion(**one) for one in entry.pop("units", ()))
    mistakes = tuple(Mistake(**one) for one in entry.pop("mistakes", ()))
    lists = {key: tuple(value) for key, value in entry.items() if isinstance(value, list)}
    return Variable(name=name, units=units, mistakes=mistakes, **{**entry, **lists})
