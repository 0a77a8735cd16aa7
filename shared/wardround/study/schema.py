"""The sections of a study file: their keys, defaults and bounds. `load.py` combines them into a study.

A study may come from a malicious server, and a person decides on it by the text on the screen. Every text is therefore
short and plain (`printable.py`), and every number has an upper bound: far above what a study can use, and far below
what the arithmetic and the screen can handle.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from wardround.printable import is_plain, is_printable
from wardround.tasks import TASKS, registry

LEAST_EPSILON = 0.001  # below it, the noise exceeds the contribution of any hospital's patients
MOST_EPSILON = 1e4  # far above any useful guarantee; a larger one is as weak as inf, which a site must allow
# The square of a clipping norm C is computed in float32, whose smallest and largest numbers are 1e-38 and 3e38. Within
# these limits, the squares of single weights (C / 1e4 each, if 1e8 weights share the norm), the noise (1e-2 to 1e4
# times C) and its grid (at least 2^-13 of the noise) all stay a factor of at least 1e15 away from both numbers.
LEAST_NORM, MOST_NORM = 1e-4, 1e4
LEAST_DELTA = 1e-15  # below it, a probability is lost in the rounding of float64
MOST_LABELS, MOST_SITES = 64, 10_000
MOST_OF_ALL_LABELS = 200  # characters, so that the text above the labels stays on the screen
MOST_SPARE_ATTEMPTS = 10  # each makes the noise larger; a crash between charge and result is rare
MOST_ROUNDS, MOST_STEPS, MOST_PATIENTS, MOST_IMAGES = 100_000, 100_000, 10_000_000, 10_000


def _printable(text: str) -> str:
    if not is_printable(text):
        raise ValueError("has a character that does not show as itself (control, line break, invisible or reordering)")
    return text


def _plain(text: str) -> str:
    if not is_plain(text):
        raise ValueError(
            "may have letters written from left to right (composed: NFC), the digits 0 to 9, the punctuation of ASCII "
            "but ^ and `, and single spaces between them"
        )
    return text


def _known_task(name: str) -> str:
    return _one_of(name, list(TASKS))


def _known_network(name: str) -> str:
    return _one_of(name, list(registry.networks_of_tasks()))


def _one_of(name: str, known: list[str]) -> str:
    if name not in known:
        *first, last = map(repr, known)
        raise ValueError(f"Input should be {', '.join(first)} or {last}")
    return name


Fraction = Annotated[float, Field(gt=0, le=1)]
Text = Annotated[str, Field(min_length=1, max_length=64), AfterValidator(_plain)]
Rate = Annotated[float, Field(gt=0, le=1000)]
# Step sizes and weights apply to noised values as post-processing, so every value of them preserves privacy.
StepSize = Annotated[float, Field(ge=1e-30, le=1e15)]  # `attack` stretches a step by up to 1000 x patients / norm
Weight = Annotated[float, Field(ge=1e-9, le=1e9)]


class Section(BaseModel):
    """A section of the study: frozen, without unknown keys and without NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=True, validate_default=True)

    @model_validator(mode="after")
    def _refuse_nan(self) -> Section:
        for name, value in self:
            if isinstance(value, float) and math.isnan(value):
                raise ValueError(f"{name} is not a number")
        return self


class StudySection(Section):
    """`[study]`: name, task and length. `seed` determines the initial weights only, never sampling or noise."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
    task: Annotated[str, AfterValidator(_known_task)] = "classification"
    rounds: Annotated[int, Field(ge=1, le=MOST_ROUNDS)]
    spare_rounds: Annotated[int, Field(ge=0, le=MOST_ROUNDS)] = 2
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0


class DataSection(Section):
    """`[data]`: what every source has, the labels. The section of a source adds the rest (`wardround.sources`)."""

    labels: Annotated[tuple[Text, ...], Field(min_length=2, max_length=MOST_LABELS)]

    @field_validator("labels")
    @classmethod
    def _labels_differ(cls, labels: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(labels)) != len(labels) or not all(label.strip() == label and label for label in labels):
            raise ValueError("labels must be different, not empty and without outer spaces")
        if sum(map(len, labels)) > MOST_OF_ALL_LABELS:
            raise ValueError(f"all labels together must have at most {MOST_OF_ALL_LABELS} characters")
        return labels


class ModelSection(Section):
    """`[model]`: the network, its initial weights, and which of them are trained on patients."""

    name: Annotated[str, AfterValidator(_known_network)] = "phantom-encoder"
    init: Annotated[str, Field(max_length=1024), AfterValidator(_printable)] = "phantom"
    init_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    trainable: Literal["head", "norm+head", "all"] = "head"

    @model_validator(mode="after")
    def _init_exists(self) -> ModelSection:
        if self.init == "phantom" and self.name not in registry.with_phantom_weights():
            known = ", ".join(registry.with_phantom_weights())
            raise ValueError(f"init: only {known} ship phantom weights; {self.name} needs 'random' or a file")
        if self.init not in ("phantom", "random") and not self.init.endswith(".safetensors"):
            raise ValueError("init must be 'phantom', 'random' or the path of a .safetensors file")
        if self.init_sha256 is not None and self.init in ("phantom", "random"):
            raise ValueError("init_sha256 belongs to a file: leave it out where init is 'phantom' or 'random'")
        return self


class TrainingSection(Section):
    """`[training]`: the local steps of a round.

    `learning_rate = "rule"` derives the learning rate from public numbers (`docs/studies.md`).
    """

    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    learning_rate: StepSize | Literal["rule"] = "rule"
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_rounds: Annotated[int, Field(ge=0, le=MOST_ROUNDS)] = 0
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    weight_decay: Annotated[float, Field(ge=0, le=1000)] = 0.0
    augmentation: Literal["none", "flips", "light"] = "none"
    local_steps: Annotated[int, Field(ge=1, le=MOST_STEPS)] = 1

    @model_validator(mode="after")
    def _rule_is_for_sgd(self) -> TrainingSection:
        if self.learning_rate == "rule" and self.optimizer != "sgd":
            raise ValueError('learning_rate: "rule" is derived for sgd; give a number')
        return self


class PrivacySection(Section):
    """`[privacy]`: the guarantee for one patient, and the public numbers from which the noise is computed."""

    epsilon: Annotated[float, Field(gt=0)]
    delta: Annotated[float, Field(ge=LEAST_DELTA, le=1e-2)]
    max_grad_norm: Annotated[float, Field(gt=0)]
    sampling_rate: Annotated[float, Field(ge=1e-6, le=1)] = 1.0
    images_per_patient: Annotated[int, Field(ge=1, le=MOST_IMAGES)] | Literal["all"] = "all"
    nominal_patients: Annotated[int, Field(ge=1, le=MOST_PATIENTS)]

    @model_validator(mode="after")
    def _numbers_are_of_use(self) -> PrivacySection:
        if math.isfinite(self.epsilon) and not LEAST_EPSILON <= self.epsilon <= MOST_EPSILON:
            raise ValueError(f"epsilon: inf, or between {LEAST_EPSILON:g} and {MOST_EPSILON:g}")
        if math.isfinite(self.max_grad_norm) and not LEAST_NORM <= self.max_grad_norm <= MOST_NORM:
            raise ValueError(f"max_grad_norm: inf, or between {LEAST_NORM:g} and {MOST_NORM:g}")
        return self

    @model_validator(mode="after")
    def _noise_needs_a_clip(self) -> PrivacySection:
        if math.isfinite(self.epsilon) and not math.isfinite(self.max_grad_norm):
            raise ValueError("max_grad_norm: a finite epsilon needs a finite clipping norm")
        if self.delta * self.nominal_patients > 1:
            raise ValueError("delta: must be below 1 / nominal_patients, otherwise it guarantees nothing")
        return self


class AggregationSection(Section):
    """`[aggregation]`: how replies become the next model, how many sites must reply, and how long a round waits."""

    strategy: Literal["fedavg", "fedprox", "fedadam"] = "fedavg"
    nominal_sites: Annotated[int, Field(ge=1, le=MOST_SITES)]
    min_sites: Annotated[int, Field(ge=1, le=MOST_SITES)] | None = None
    site_weights: Annotated[dict[Text, Weight], Field(max_length=MOST_SITES)] = {}
    round_deadline_s: Annotated[float, Field(gt=0, le=30 * 86_400)] = 600.0  # at most a month
    max_update_norm: Weight = 1000.0
    release: Literal["last", "ema", "tail_mean"] = "last"
    tail_fraction: Fraction = 0.5
    ema_decay: Annotated[float, Field(gt=0, lt=1)] = 0.9
    proximal_mu: Annotated[float, Field(ge=0, le=1e6)] = 0.0
    server_learning_rate: Rate = 0.1

    @model_validator(mode="after")
    def _quorum_is_reachable(self) -> AggregationSection:
        if self.min_sites is None:
            object.__setattr__(self, "min_sites", self.nominal_sites)
        if (self.min_sites or self.nominal_sites) > self.nominal_sites:
            raise ValueError("min_sites: cannot be more than nominal_sites")
        if self.strategy == "fedprox" and self.proximal_mu == 0:
            raise ValueError("proximal_mu: fedprox needs a value above 0")
        return self


class EvaluationSection(Section):
    """`[evaluation]`: the held-out patients, the budget for figures about them, and the bins of their scores.

    `holdout` is the share of patients that are never trained on. `epsilon` is the budget for releasing figures about
    them (0: no figures; inf: exact counts, no privacy). `bins` and `logit_scale` are the public bins of their scores
    (`metrics/score_bins.py`).
    """

    holdout: Annotated[float, Field(ge=0, lt=1)] = 0.2
    epsilon: Annotated[float, Field(ge=0)] = 0.0
    bins: Annotated[int, Field(ge=8, le=64)] = 16
    logit_scale: Annotated[float, Field(ge=0.01, le=100)] = 2.0

    @model_validator(mode="after")
    def _a_release_has_a_meaning(self) -> EvaluationSection:
        if math.isfinite(self.epsilon) and self.epsilon != 0 and not LEAST_EPSILON <= self.epsilon <= MOST_EPSILON:
            raise ValueError(f"epsilon: 0 for no figures, inf, or between {LEAST_EPSILON:g} and {MOST_EPSILON:g}")
        if self.epsilon > 0 and self.holdout == 0:
            raise ValueError("epsilon: figures need held-out patients; raise holdout, or set epsilon = 0")
        return self


class PersonalisationSection(Section):
    """`[personalisation]`: each site may train the released model further on its own patients; the result stays there.

    Without this section no site does. `epsilon` covers all attempts: one, and `spare_attempts` for attempts that a
    crash cut short. Sampling, clipping and delta are those of `[privacy]`.
    """

    epsilon: Annotated[float, Field(gt=0)]
    trainable: Literal["head", "norm+head", "all"] = "head"
    steps: Annotated[int, Field(ge=1, le=MOST_STEPS)] = 20
    learning_rate: StepSize | Literal["rule"] = "rule"
    spare_attempts: Annotated[int, Field(ge=0, le=MOST_SPARE_ATTEMPTS)] = 1

    @model_validator(mode="after")
    def _epsilon_is_of_use(self) -> PersonalisationSection:
        if math.isfinite(self.epsilon) and not LEAST_EPSILON <= self.epsilon <= MOST_EPSILON:
            raise ValueError(f"epsilon: inf, or between {LEAST_EPSILON:g} and {MOST_EPSILON:g}")
        return self
