"""The study file: what is to be learned, on which data, how private, in how many rounds.

A study is a TOML file of seven sections (`docs/studies.md` lists every key). It is declarative: no code travels.
Its identity is the SHA-256 of its canonical form, with every default written out, so that a site which approves a
hash has approved all of it. `load_study` is the only way in: unknown keys, values out of range and contradictions
raise `StudyError`.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from wardround.errors import StudyError

SCHEMA_VERSION = 1
LEAST_EVALUATION_EPSILON = 0.001  # below, the noise is larger than any hospital

Fraction = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A section of the study: frozen, strict about unknown keys; NaN is refused everywhere."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=True, validate_default=True)

    @model_validator(mode="after")
    def _refuse_nan(self) -> Section:
        for name, value in self:
            if isinstance(value, float) and math.isnan(value):
                raise ValueError(f"{name} is not a number")
        return self


class StudySection(Section):
    """`[study]`: name, task and length. `seed` draws initial weights, never samples or noise."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
    task: Literal["classification"] = "classification"
    rounds: Count
    spare_rounds: Annotated[int, Field(ge=0)] = 2
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0


class DataSection(Section):
    """`[data]`: which images, and what is cut out of them. HU windows apply to DICOM with a rescale; 8-bit images
    ignore them.
    """

    modality: Literal["CT", "CR", "DX", "MG", "MR", "PT", "any"] = "CT"
    body_part: str | None = None
    image_size: Annotated[int, Field(ge=16, le=1024)] = 128
    region: Literal["whole", "centre", "marked"] = "whole"
    spacing_mm: Positive | None = None
    channels: Literal["grey", "rgb", "windows", "slices"] = "grey"
    window_hu: tuple[tuple[float, float], ...] = ((-1000.0, 400.0),)
    labels: Annotated[tuple[str, ...], Field(min_length=2)]

    @field_validator("window_hu")
    @classmethod
    def _windows_ascend(cls, windows: tuple[tuple[float, float], ...]) -> tuple[tuple[float, float], ...]:
        if not windows:
            raise ValueError("needs at least one window [low, high]")
        for low, high in windows:
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise ValueError("each window is [low, high] with low < high, in HU")
        return windows

    @field_validator("labels")
    @classmethod
    def _labels_differ(cls, labels: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(labels)) != len(labels) or not all(label.strip() == label and label for label in labels):
            raise ValueError("labels must be different, not empty and without outer spaces")
        return labels

    @property
    def channel_count(self) -> int:
        """Channels of an image: grey 1, rgb and slices (below, at, above) 3, windows one each."""
        return {"grey": 1, "rgb": 3, "slices": 3, "windows": len(self.window_hu)}[self.channels]


class ModelSection(Section):
    """`[model]`: the network, where its weights start, and which of them the patients may move."""

    name: Literal["phantom-encoder", "seed-cnn", "resnet-small", "resnet-large", "densenet121"] = "phantom-encoder"
    init: str = "phantom"
    init_sha256: str | None = None
    trainable: Literal["head", "norm+head", "all"] = "head"

    @model_validator(mode="after")
    def _init_exists(self) -> ModelSection:
        if self.init == "phantom" and self.name != "phantom-encoder":
            raise ValueError(f"init: only phantom-encoder ships phantom weights; {self.name} needs 'random' or a file")
        if self.init not in ("phantom", "random") and not self.init.endswith(".safetensors"):
            raise ValueError("init must be 'phantom', 'random' or the path of a .safetensors file")
        return self


class TrainingSection(Section):
    """`[training]`: the local steps of a round. `learning_rate = "rule"` derives it from public numbers
    (`docs/studies.md`).
    """

    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    learning_rate: Positive | Literal["rule"] = "rule"
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_rounds: Annotated[int, Field(ge=0)] = 0
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    augmentation: Literal["none", "flips", "light"] = "none"
    local_steps: Count = 1

    @model_validator(mode="after")
    def _rule_is_for_sgd(self) -> TrainingSection:
        if self.learning_rate == "rule" and self.optimizer != "sgd":
            raise ValueError('learning_rate: "rule" is derived for sgd; give a number')
        return self


class PrivacySection(Section):
    """`[privacy]`: the promise for one patient, and the public numbers it is computed from."""

    epsilon: Positive
    delta: Annotated[float, Field(gt=0, le=1e-2)]
    max_grad_norm: Positive
    sampling_rate: Fraction = 1.0
    images_per_patient: Count | Literal["all"] = "all"
    nominal_patients: Count

    @model_validator(mode="after")
    def _noise_needs_a_clip(self) -> PrivacySection:
        if math.isfinite(self.epsilon) and not math.isfinite(self.max_grad_norm):
            raise ValueError("max_grad_norm: a finite epsilon needs a finite clipping norm")
        if self.delta * self.nominal_patients > 1:
            raise ValueError("delta: must be below 1 / nominal_patients, or it promises nothing")
        return self


class AggregationSection(Section):
    """`[aggregation]`: how replies become the next model, who must be there, and how long a round waits."""

    strategy: Literal["fedavg", "fedprox", "fedadam"] = "fedavg"
    nominal_sites: Count
    min_sites: Count | None = None
    site_weights: dict[str, Positive] = {}
    round_deadline_s: Positive = 600.0
    max_update_norm: Positive = 1000.0
    release: Literal["last", "ema", "tail_mean"] = "last"
    tail_fraction: Fraction = 0.5
    ema_decay: Annotated[float, Field(gt=0, lt=1)] = 0.9
    proximal_mu: Annotated[float, Field(ge=0)] = 0.0
    server_learning_rate: Positive = 0.1

    @model_validator(mode="after")
    def _quorum_is_reachable(self) -> AggregationSection:
        if self.min_sites is None:
            object.__setattr__(self, "min_sites", self.nominal_sites)
        if self.min_sites > self.nominal_sites:
            raise ValueError("min_sites: cannot be more than nominal_sites")
        if self.strategy == "fedprox" and self.proximal_mu == 0:
            raise ValueError("proximal_mu: fedprox needs a value above 0")
        if self.site_weights and not all(math.isfinite(w) for w in self.site_weights.values()):
            raise ValueError("site_weights: must be finite")
        return self


class EvaluationSection(Section):
    """`[evaluation]`: the share of patients held out for ever, the budget for releasing figures about them (0: none,
    inf: exact counts, no privacy), and the public bins of their scores (`score_bins`).
    """

    holdout: Annotated[float, Field(ge=0, lt=1)] = 0.2
    epsilon: Annotated[float, Field(ge=0)] = 0.0
    bins: Annotated[int, Field(ge=8, le=64)] = 16
    logit_scale: Annotated[float, Field(ge=0.01, le=100)] = 2.0

    @model_validator(mode="after")
    def _a_release_has_a_meaning(self) -> EvaluationSection:
        if 0 < self.epsilon < LEAST_EVALUATION_EPSILON:
            raise ValueError(f"epsilon: 0 for no figures, or at least {LEAST_EVALUATION_EPSILON:g}")
        if self.epsilon > 0 and self.holdout == 0:
            raise ValueError("epsilon: figures need held-out patients; raise holdout, or set epsilon = 0")
        return self


class Study(Section):
    """A whole study. Frozen; compare two by `sha256()`."""

    study: StudySection
    data: DataSection
    model: ModelSection = ModelSection()
    training: TrainingSection = TrainingSection()
    privacy: PrivacySection
    aggregation: AggregationSection
    evaluation: EvaluationSection = EvaluationSection()

    @model_validator(mode="after")
    def _sections_agree(self) -> Study:
        if self.training.learning_rate == "rule" and not math.isfinite(self.privacy.max_grad_norm):
            raise ValueError(
                'training.learning_rate: "rule" divides by max_grad_norm; give a finite norm, or a number as the rate'
            )
        if self.model.init == "phantom" and self.data.channels != "grey":
            raise ValueError(
                "data.channels: the phantom weights read grey images; use channels = 'grey' or init = 'random'"
            )
        if self.evaluation.epsilon > 0 and len(self.data.labels) > 2:
            raise ValueError("evaluation.epsilon: figures are released for two labels only; set it to 0")
        if self.training.schedule == "cosine" and self.training.warmup_rounds >= self.study.rounds:
            raise ValueError("training.warmup_rounds: must be fewer than the rounds")
        return self

    @property
    def budgeted_steps(self) -> int:
        """Noisy steps the privacy plan pays for at one site: (rounds + spare_rounds) x local_steps."""
        return (self.study.rounds + self.study.spare_rounds) * self.training.local_steps

    def canonical(self) -> str:
        """The canonical form: JSON with sorted keys, every default written out, a model file by its hash and not
        its path.
        """
        content = self.model_dump(mode="python")
        if content["model"]["init_sha256"]:
            content["model"]["init"] = "file"
        return json.dumps(
            {"schema": SCHEMA_VERSION, **_plain(content)}, sort_keys=True, separators=(",", ":"), allow_nan=False
        )

    def to_json(self) -> str:
        """All fields as JSON, a model file by its path; `study_from_json` reads it back."""
        return json.dumps(_plain(self.model_dump(mode="python")), indent=1, allow_nan=False)

    def sha256(self) -> str:
        """Identity of the study: SHA-256 of `canonical()`, in hex."""
        return hashlib.sha256(self.canonical().encode()).hexdigest()


def load_study(path: Path, overrides: tuple[str, ...] = ()) -> Study:
    """Read a study file and apply `section.key=value` overrides in their order.

    Raises `StudyError` with one line that names the file, the field and the mend.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StudyError(f"{path}: no such study file; `ls studies/` shows the ready ones") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise StudyError(f"{path}: not a TOML file: {error}") from None
    except OSError as error:
        raise StudyError(f"{path}: cannot be read: {error.strerror}") from None
    for override in overrides:
        _override(content, override)
    study = parse_study(content, source=str(path))
    if study.model.init in ("phantom", "random"):
        return study
    weights = (path.parent / study.model.init).resolve()
    if not weights.is_file():
        raise StudyError(f"{path}: model.init: no such file: {study.model.init}")
    content.setdefault("model", {}).update(
        init=str(weights), init_sha256=hashlib.sha256(weights.read_bytes()).hexdigest()
    )
    return parse_study(content, source=str(path))


def parse_study(content: dict[str, Any], source: str = "study") -> Study:
    """Validate a study given as nested dicts. Raises `StudyError`, one line, with the nearest spelling of an
    unknown key.
    """
    try:
        return Study.model_validate(_numbers(content))
    except ValidationError as error:
        raise StudyError(f"{source}: {_first_fault(error)}") from None


def study_from_json(text: str, source: str = "study") -> Study:
    """Read what `Study.to_json` wrote. Raises `StudyError` where it is not a study."""
    try:
        return parse_study(json.loads(text), source)
    except json.JSONDecodeError as error:
        raise StudyError(f"{source}: not JSON: {error}") from None


def _numbers(content: dict[str, Any]) -> dict[str, Any]:
    """The string "inf" (JSON knows no infinity) becomes the number, where a number is meant."""
    for name in ("privacy", "evaluation"):
        section = content.get(name)
        if isinstance(section, dict):
            content = {**content, name: {k: math.inf if v == "inf" else v for k, v in section.items()}}
    return content


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return "inf" if isinstance(value, float) and math.isinf(value) else value


def _override(content: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    section, dot, field = key.strip().partition(".")
    if not separator or not dot or not field:
        raise StudyError(f"--set {override}: write section.key=value, for instance privacy.epsilon=3")
    try:
        value = tomllib.loads(f"value = {text.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    table = content.setdefault(section, {})
    if not isinstance(table, dict):
        raise StudyError(f"--set {override}: {section} is not a section")
    table[field] = value


def _first_fault(error: ValidationError) -> str:
    """One line for the first fault: an unknown key before anything else, for it often causes the rest."""
    faults = sorted(error.errors(), key=lambda fault: fault["type"] != "extra_forbidden")
    fault = faults[0]
    place = ".".join(
        str(part) for part in fault["loc"] if not str(part).startswith(("float", "literal", "constrained", "int"))
    )
    if fault["type"] == "extra_forbidden":
        known = _known_keys(fault["loc"][:-1])
        near = difflib.get_close_matches(str(fault["loc"][-1]), known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(known)}"
        return f"unknown key {place}; {hint}"
    if fault["type"] == "missing":
        return f"{place} is missing"
    message = fault["msg"].removeprefix("Value error, ")
    return f"{place}: {message}" if place else message


def _known_keys(location: tuple[Any, ...]) -> list[str]:
    model: type[BaseModel] = Study
    for part in location:
        model = model.model_fields[str(part)].annotation  # type: ignore[assignment]
    return sorted(model.model_fields)
