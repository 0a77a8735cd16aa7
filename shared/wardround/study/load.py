"""The study file: the task, the data, the privacy guarantee and the rounds of a training.

A study is a TOML file of seven sections, with one more for the generative tasks and an optional `[personalisation]`
(`docs/studies.md` lists every key). It is declarative and contains no code. Its identity is the SHA-256 of its
canonical form, in which every default is written out, so that a site which approves a hash has approved every setting.
All functions that read a study validate it: unknown keys, values out of range and contradictions raise `StudyError`.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import os
import tomllib
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, get_args

from pydantic import BaseModel, ValidationError, create_model, model_validator

from wardround.errors import StudyError
from wardround.printable import escaped
from wardround.sources import SOURCES
from wardround.sources.registry import source_study
from wardround.storage.json_numbers import json_numbers, number_of_json
from wardround.storage.toml import MOST_OF_A_KEY, toml_content
from wardround.study.ready_studies import ready_folder
from wardround.study.schema import (
    AggregationSection,
    DataSection,
    EvaluationSection,
    ModelSection,
    PersonalisationSection,
    PrivacySection,
    Section,
    StudySection,
    TrainingSection,
)
from wardround.tasks import TASKS, registry

SCHEMA_VERSION = 1


class _Study(Section):
    """A complete study. It is immutable; compare two studies by `sha256()`."""

    study: StudySection
    data: DataSection
    model: ModelSection = ModelSection()
    training: TrainingSection = TrainingSection()
    privacy: PrivacySection
    aggregation: AggregationSection
    evaluation: EvaluationSection = EvaluationSection()
    personalisation: PersonalisationSection | None = None  # absent by default, also from the canonical form

    @model_validator(mode="after")
    def _network_and_sections_fit_the_task(self) -> _Study:
        task, name = self.study.task, self.model.name
        if registry.networks_of_tasks()[name] != task:
            raise ValueError(f"model.name: {name} is not a network for {task}")
        for of_task, section in _task_sections().items():
            given = getattr(self, of_task)
            if of_task != task:
                if given is not None:
                    raise ValueError(f"{of_task}: this section is allowed only with study.task = {of_task!r}")
            elif given is None:
                object.__setattr__(self, of_task, section())
        return self

    @model_validator(mode="after")
    def _sections_agree(self) -> _Study:
        if self.training.learning_rate == "rule" and not math.isfinite(self.privacy.max_grad_norm):
            raise ValueError(
                'training.learning_rate: "rule" divides by max_grad_norm; give a finite norm, or a number as the rate'
            )
        source_study(registry.source_of_task(self.study.task)).check(self)
        registry.study_part(self.study.task).check(self)
        self._check_personalisation()
        if self.training.schedule == "cosine" and self.training.warmup_rounds >= self.study.rounds:
            raise ValueError("training.warmup_rounds: must be fewer than the rounds")
        return self

    def _check_personalisation(self) -> None:
        personal = self.personalisation
        if personal is None:
            return
        if not registry.commands_of(self.study.task).personalise:
            raise ValueError(f"personalisation: models of {self.study.task} cannot be personalised; leave it out")
        if not math.isfinite(self.privacy.max_grad_norm):
            if math.isfinite(personal.epsilon):
                raise ValueError("personalisation.epsilon: a finite epsilon needs a finite privacy.max_grad_norm")
            if personal.learning_rate == "rule":
                raise ValueError('personalisation.learning_rate: "rule" divides by max_grad_norm; give a number')
        if self.evaluation.holdout == 0:
            raise ValueError(
                "personalisation: a site tests the result on held-out patients; set evaluation.holdout above 0"
            )

    @property
    def budgeted_steps(self) -> int:
        """Noisy steps that the privacy plan covers at one site: (rounds + spare_rounds) x local_steps."""
        return (self.study.rounds + self.study.spare_rounds) * self.training.local_steps

    @property
    def task_section(self) -> Section | None:
        """The section of the study's task, with every default; None for a task without a section of its own."""
        return getattr(self, self.study.task, None)

    def canonical(self) -> str:
        """Return the canonical form: JSON with sorted keys and every default written out.

        A model file is represented by its hash, not its path.
        """
        content = self._content()
        if content["model"]["init_sha256"]:
            content["model"]["init"] = "file"
        return json.dumps(
            {"schema": SCHEMA_VERSION, **json_numbers(content)}, sort_keys=True, separators=(",", ":"), allow_nan=False
        )

    def to_json(self) -> str:
        """Return all fields as JSON, with a model file given by its path; `study_from_json` reads it back."""
        return json.dumps(json_numbers(self._content()), indent=1, allow_nan=False)

    def _content(self) -> dict[str, Any]:
        """Return all sections that the task has, with every default."""
        return {name: section for name, section in self.model_dump(mode="python").items() if section is not None}

    def sha256(self) -> str:
        """Return the identity of the study: the SHA-256 of `canonical()`, in hex."""
        return hashlib.sha256(self.canonical().encode()).hexdigest()


def _task_sections() -> dict[str, type[Section]]:
    found = {task: registry.study_part(task).SECTION for task in TASKS}
    return {task: section for task, section in found.items() if section is not None}


if TYPE_CHECKING:
    Study = _Study
else:  # adds a field for each task's own section, which is None only in studies of other tasks
    Study = create_model(
        "Study",
        __base__=_Study,
        __module__=__name__,
        __doc__=_Study.__doc__,
        **{task: (section | None, None) for task, section in _task_sections().items()},
    )


def _of_source(source: str) -> type[Study]:
    """Return the class of the studies that read a source: `[data]` is that source's section."""
    name = f"{source.capitalize()}Study"
    made: type[Study] = create_model(
        name, __base__=Study, __module__=__name__, __doc__=_Study.__doc__, data=(source_study(source).SECTION, ...)
    )
    globals()[name] = made  # workers find the class of a pickled study by its name
    return made


_CLASSES = {source: _of_source(source) for source in SOURCES}


def load_study(path: Path, overrides: tuple[str, ...] = ()) -> Study:
    """Read a study file and apply `section.key=value` overrides in their order.

    Raises `StudyError` with one line that names the file, the field and the fix.
    """
    if not os.path.lexists(path):
        raise StudyError(f"{path}: no such study file; the ready ones are in {ready_folder()}")
    content = toml_content(path, StudyError)
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
    """Validate a study given as nested dicts.

    Raises `StudyError` with one printable line, which suggests the nearest spelling for an unknown key.
    """
    if not isinstance(content, dict):
        raise StudyError(f"{source}: is not a study: it has no sections")
    study_class = _class_for(content)
    try:
        return study_class.model_validate(_numbers(content))
    except ValidationError as error:
        raise StudyError(f"{source}: {_first_fault(error, study_class)}") from None


def study_from_json(text: str, source: str = "study") -> Study:
    """Read the output of `Study.to_json`. Raises `StudyError` for any other text."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:  # not JSON, a number with thousands of digits, or deep nesting
        raise StudyError(f"{source}: not valid JSON: {error}") from None
    return parse_study(content, source)


def with_epsilon(study: Study, epsilon: float) -> Study:
    """The same study at another epsilon."""
    content = study.model_dump()
    content["privacy"]["epsilon"] = epsilon
    return parse_study(content)


def _numbers(content: dict[str, Any]) -> dict[str, Any]:
    """Convert the string "inf" to infinity, which JSON cannot represent, in the sections that allow it."""
    for name in ("privacy", "evaluation", "personalisation"):
        section = content.get(name)
        if isinstance(section, dict):
            content = {**content, name: {key: number_of_json(value) for key, value in section.items()}}
    return content


def _override(content: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    section, dot, field = key.strip().partition(".")
    if not separator or not dot or not field:
        raise StudyError(f"--set {override}: write section.key=value, for example privacy.epsilon=3")
    try:
        value = tomllib.loads(f"value = {text.strip()}")["value"]
    except (ValueError, RecursionError):
        value = text.strip()
    table = content.setdefault(section, {})
    if not isinstance(table, dict):
        raise StudyError(f"--set {override}: {section} is not a section")
    table[field] = value


def _class_for(content: dict[str, Any]) -> type[Study]:
    """Return the class of a study's source. A task that does not exist is found by the validation, not here."""
    section = content.get("study")
    task = section.get("task") if isinstance(section, dict) else None
    return _CLASSES[registry.source_of_task(task) if isinstance(task, str) and task in TASKS else "images"]


def _first_fault(error: ValidationError, study_class: type[Study]) -> str:
    """Return one line for the first fault, unknown keys first, because they often cause the other faults."""
    faults = sorted(error.errors(), key=lambda fault: fault["type"] != "extra_forbidden")
    fault = faults[0]
    place = escaped(
        ".".join(
            str(part)[:MOST_OF_A_KEY]
            for part in fault["loc"]
            if not str(part).startswith(("float", "literal", "constrained", "int"))
        )
    )
    if fault["type"] == "extra_forbidden":
        known = _known_keys(study_class, fault["loc"][:-1])
        near = difflib.get_close_matches(str(fault["loc"][-1])[:MOST_OF_A_KEY], known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(known)}"
        return f"unknown key {place}; {hint}"
    if fault["type"] == "missing":
        return f"{place} is missing"
    message = fault["msg"].removeprefix("Value error, ")
    return f"{place}: {message}" if place else message


def _known_keys(study_class: type[Study], location: tuple[Any, ...]) -> list[str]:
    model: type[BaseModel] = study_class
    for part in location:
        annotation: Any = model.model_fields[str(part)].annotation
        model = next((kind for kind in get_args(annotation) if kind is not NoneType), annotation)
    return sorted(model.model_fields)
