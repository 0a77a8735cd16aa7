"""Simulated stays in intensive care: hourly measurements of patients who do not exist, and whether they died.

Every stay has seven organs whose burden follows a common severity and drifts over the hours. A measured value is a
usual value plus what the burdens of organs add to it, plus a difference between patients and a slow fluctuation within
one. How often a variable is measured, and who is measured at all, depends on the burdens too, as in a real unit. Death
depends on the burdens at the end and on age. All numbers were written by hand from general physiology; no patient's
data were used, and the rates and correlations of a real hospital are others.

Values are drawn in the scaled units of the vocabulary "icu" and converted to its own units.

Shapes: N stays, T hours, V variables of the vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from wardround.sources.records.vocabulary import Variable, Vocabulary, load_vocabulary

GENERATOR_VERSION = 1  # increase it when the same seed gives other stays
ORGANS = ("circulation", "lungs", "kidneys", "liver", "brain", "infection", "blood")
COMMON, OWN = 0.55, 0.83  # share of the common severity in an organ's burden, and of its own part
DRIFT, DRIFT_FROM_HOUR = 0.6, 30  # of a burden in a day; its mean is reached at this hour
MEMORY = 0.85  # of a fluctuation from hour to hour
FARTHEST = 8.0  # scaled values beyond it are not drawn
DEATHS = 0.13  # of all stays, about
VENTILATION_SEEN = 0.4  # chance that a ventilated hour has a record of it


@dataclass(frozen=True, kw_only=True)
class Course:
    """How a variable varies, in scaled units, and when it is measured.

    `rate` is the chance of a value in an hour; with `ordered_for` it is that of stays whose burden of this organ made a
    doctor order it, and hardly anyone else has a value.
    """

    usual: float
    burdens: Mapping[str, float]  # organ -> what a burden of 1 adds
    between: float  # deviation between patients
    within: float  # deviation of the fluctuation within a stay
    rate: float
    ordered_for: str | None = None
    rises: float = 0.25  # of the rate with the mean burden, exponentially
    ventilated_rate: float | None = None  # the chance in a ventilated hour, if it is another one
    gases: bool = False  # measured with the other blood gases
    share: float = 1.0  # of stays in which it is measured at all


def _course(
    usual: float, between: float, within: float, rate: float, burdens: str, **more: float | str | bool | None
) -> Course:
    parts = (part.split() for part in burdens.split(",") if part)
    found = {organ: float(number) for organ, number in parts}
    return Course(usual=usual, burdens=found, between=between, within=within, rate=rate, **more)  # type: ignore[arg-type]


COURSES = {
    "ALP": _course(0, 0.6, 0.1, 0.012, "liver .5", ordered_for="liver"),
    "ALT": _course(0.4, 0.8, 0.15, 0.012, "liver 1,circulation .3", ordered_for="liver"),
    "AST": _course(0.6, 0.8, 0.15, 0.012, "liver 1,circulation .3", ordered_for="liver"),
    "Albumin": _course(-1, 0.6, 0.1, 0.01, "infection -.5,liver -.4", ordered_for="infection"),
    "BUN": _course(0.2, 0.6, 0.08, 0.06, "kidneys .9,circulation .2"),
    "Bilirubin": _course(0, 0.7, 0.1, 0.012, "liver 1,infection .2", ordered_for="liver"),
    "Cholesterol": _course(-0.3, 0.9, 0.1, 0.002, "infection -.3", ordered_for="liver"),
    "Creatinine": _course(0.1, 0.5, 0.08, 0.06, "kidneys 1,circulation .15"),
    "DiasABP": _course(-0.3, 0.5, 0.5, 0.9, "circulation -.35,infection -.25", rises=0),
    "FiO2": _course(0.5, 0.4, 0.3, 0.02, "lungs .6,circulation .15", rises=0, ventilated_rate=0.35),
    "GCS": _course(0.3, 0.4, 0.25, 0.3, "brain -1,lungs -.2", rises=0),
    "Glucose": _course(0.3, 0.5, 0.5, 0.06, "infection .2,circulation .15"),
    "HCO3": _course(-0.1, 0.6, 0.25, 0.06, "kidneys -.4,circulation -.4,lungs .2"),
    "HCT": _course(-0.6, 0.6, 0.25, 0.08, "blood -.3"),
    "HR": _course(0.1, 0.6, 0.4, 0.95, "circulation .4,infection .35,lungs .15", rises=0),
    "K": _course(0, 0.5, 0.5, 0.07, "kidneys .35"),
    "Lactate": _course(0.2, 0.4, 0.3, 0.03, "circulation .7,liver .25,infection .25", ordered_for="circulation"),
    "MAP": _course(-0.1, 0.5, 0.6, 0.9, "circulation -.5,infection -.25", rises=0),
    "Mg": _course(0, 0.6, 0.5, 0.05, "kidneys .2"),
    "Na": _course(0, 0.8, 0.3, 0.06, "kidneys .1,liver -.15"),
    "PaCO2": _course(0, 0.6, 0.5, 0.13, "lungs .35,circulation -.2", gases=True, rises=0.3),
    "PaO2": _course(0.4, 0.4, 0.6, 0.13, "lungs -.5", gases=True, rises=0.3),
    "Platelets": _course(-0.3, 0.6, 0.1, 0.06, "blood -.8,liver -.2,infection -.1"),
    "RespRate": _course(0.2, 0.4, 0.6, 0.75, "lungs .5,infection .25", rises=0, share=0.3),
    "SaO2": _course(0, 0.3, 0.7, 0.03, "lungs -.5", ordered_for="lungs"),
    "SysABP": _course(0, 0.6, 0.6, 0.9, "circulation -.5,infection -.2", rises=0),
    "Temp": _course(0.1, 0.4, 0.4, 0.35, "infection .35,circulation -.25", rises=0),
    "TroponinI": _course(0.5, 0.9, 0.2, 0.002, "circulation .7", ordered_for="circulation"),
    "TroponinT": _course(0.5, 0.9, 0.2, 0.008, "circulation .7", ordered_for="circulation"),
    "Urine": _course(0, 0.4, 0.8, 0.7, "kidneys -.7,circulation -.35", rises=0),
    "WBC": _course(0.3, 0.6, 0.15, 0.06, "infection .6"),
    "pH": _course(0, 0.4, 0.4, 0.13, "circulation -.4,kidneys -.3,lungs -.35", gases=True, rises=0.3),
}
LATE = {
    "brain": 0.5,
    "circulation": 0.35,
    "kidneys": 0.25,
    "liver": 0.25,
    "lungs": 0.25,
}  # weights in the risk of death


@dataclass(frozen=True, kw_only=True, eq=False)
class _Ward:
    """What is known of N simulated stays before anything is measured."""

    burden: Mapping[str, np.ndarray]  # organ -> (N, T)
    mean_burden_NT: np.ndarray
    age_N: np.ndarray  # scaled
    ventilated_NT: np.ndarray
    gases_N: np.ndarray
    hours: int
    random: np.random.Generator = field(repr=False)

    @property
    def count(self) -> int:
        return len(self.age_N)


def stays(count: int, seed: int, *, hours: int = 48) -> tuple[np.ndarray, np.ndarray]:
    """Return `count` simulated stays in the units of the vocabulary "icu"; the same arguments give the same stays.

    Returns:
        Rows as those of a cohort, float32 (N, T, V), NaN where nothing was measured, facts of the stay in hour 0; and
        whether the patient died, int64 (N,).
    """
    vocabulary = load_vocabulary("icu")
    ward = _ward(count, hours, np.random.default_rng(seed))
    rows_NTV = np.full((count, hours, len(vocabulary.variables)), np.nan, np.float32)
    for name, course in COURSES.items():
        variable = vocabulary.variables[vocabulary.index(name)]
        scaled_NT = _measured(name, course, ward)
        rows_NTV[..., vocabulary.index(name)] = _in_units(scaled_NT, variable)
    seen_NT = ward.ventilated_NT & (ward.random.random((count, hours)) < VENTILATION_SEEN)
    rows_NTV[..., vocabulary.index("MechVent")] = np.where(seen_NT, 1.0, np.nan)
    _add_facts(rows_NTV, ward, vocabulary)
    return rows_NTV, _deaths(ward)


def _ward(count: int, hours: int, random: np.random.Generator) -> _Ward:
    severity_N, trend_N = random.normal(size=count), random.normal(size=count)
    age_N = np.clip(random.normal(0, 1.1, count), -3, 1.67)
    hour_T = np.arange(hours)
    burden = {}
    for organ in ORGANS:
        level_N = COMMON * severity_N + OWN * random.normal(size=count)
        drift_N = DRIFT * (0.5 * trend_N + 0.5 * random.normal(size=count))
        path_NT = level_N[:, None] + drift_N[:, None] * ((hour_T - DRIFT_FROM_HOUR) / 24)
        burden[organ] = np.where(path_NT > 0, path_NT, path_NT / 2)  # illness shows, good health hardly
    mean_NT = np.mean(list(burden.values()), axis=0)
    ventilated_N = random.random(count) < _chance(-0.3 + 0.9 * burden["lungs"][:, 0] + 0.7 * burden["brain"][:, 0])
    end_N = np.clip(random.exponential(20, count) * np.exp(0.5 * mean_NT[:, -1]), 2, 200)
    gases_N = random.random(count) < _chance(1 + 1.2 * burden["lungs"][:, 0] + 1.5 * ventilated_N)
    return _Ward(
        burden=burden,
        mean_burden_NT=mean_NT,
        age_N=age_N,
        ventilated_NT=ventilated_N[:, None] & (hour_T < end_N[:, None]),
        gases_N=gases_N,
        hours=hours,
        random=random,
    )


def _measured(name: str, course: Course, ward: _Ward) -> np.ndarray:
    """A variable's scaled values (N, T), NaN in the hours in which it is not measured."""
    random, shape = ward.random, (ward.count, ward.hours)
    values_NT = course.usual + course.between * random.normal(size=(ward.count, 1))
    values_NT = values_NT + sum(weight * ward.burden[organ] for organ, weight in course.burdens.items())
    fluctuation_NT = random.normal(size=shape)
    for hour in range(1, ward.hours):
        fluctuation_NT[:, hour] *= math.sqrt(1 - MEMORY**2)
        fluctuation_NT[:, hour] += MEMORY * fluctuation_NT[:, hour - 1]
    values_NT = values_NT + course.within * fluctuation_NT
    if name == "GCS":
        values_NT = np.clip(values_NT - 0.8 * ward.ventilated_NT, -2.25, 0.75)
    there_NT = random.random(shape) < np.clip(_rates(course, ward), 0, 1)
    return np.where(there_NT, np.clip(values_NT, -FARTHEST, FARTHEST), np.nan)


def _rates(course: Course, ward: _Ward) -> np.ndarray:
    """The chance of a value in each hour, (N, T)."""
    random = ward.random
    rate_NT = course.rate * np.exp(course.rises * ward.mean_burden_NT)
    if course.ventilated_rate is not None:
        rate_NT = np.where(ward.ventilated_NT, course.ventilated_rate, rate_NT)
    if course.gases:
        rate_NT = np.where(ward.gases_N[:, None], rate_NT, 0.003)
    if course.ordered_for is not None:
        burden_NT = ward.burden[course.ordered_for]
        ordered_N = random.random(ward.count) < _chance(-0.2 + 0.9 * burden_NT[:, 0])
        rate_NT = np.where(ordered_N[:, None], 2 * course.rate * np.exp(0.3 * burden_NT), 0.05 * course.rate)
    if course.share < 1:
        rate_NT = rate_NT * (random.random(ward.count) < course.share)[:, None]
    return rate_NT


def _add_facts(rows_NTV: np.ndarray, ward: _Ward, vocabulary: Vocabulary) -> None:
    """Age, sex, height, weight and type of unit in hour 0; height and weight are often missing."""
    random, count = ward.random, ward.count
    of = {name: vocabulary.variables[vocabulary.index(name)] for name in ("Age", "Height", "Weight")}
    height_N = np.where(random.random(count) < 0.47, np.nan, random.normal(size=count))
    weight_N = np.where(random.random(count) < 0.08, np.nan, random.normal(size=count))
    for name, scaled_N in (("Age", ward.age_N), ("Height", height_N), ("Weight", weight_N)):
        rows_NTV[:, 0, vocabulary.index(name)] = np.round(_in_units(scaled_N, of[name]), 0)
    rows_NTV[:, 0, vocabulary.index("Sex")] = random.random(count) < 0.56
    units = len(vocabulary.variables[vocabulary.index("ICUType")].categories)
    rows_NTV[:, 0, vocabulary.index("ICUType")] = random.integers(0, units, count)


def _deaths(ward: _Ward) -> np.ndarray:
    burden_N = 0.65 * ward.mean_burden_NT[:, -1] + 0.35 * ward.mean_burden_NT.mean(1)
    late_N = sum(weight * np.maximum(ward.burden[organ][:, -1], 0) for organ, weight in LATE.items())
    risk_N = 1.5 * burden_N + late_N + 0.6 * ward.age_N
    chance_N = _chance(1.4 * (risk_N - np.quantile(risk_N, 1 - DEATHS)))
    return (ward.random.random(ward.count) < chance_N).astype(np.int64)


def _in_units(scaled: np.ndarray, variable: Variable) -> np.ndarray:
    """The inverse of `Variable.scaled`, kept within what is possible."""
    if variable.scale == "linear":
        values = variable.centre + variable.spread * scaled
    else:
        one = 1.0 if variable.scale == "log1p" else 0.0
        values = (one + variable.centre) * variable.spread**scaled - one
    return np.clip(values, variable.lowest, variable.highest)


def _chance(logit: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logit))
