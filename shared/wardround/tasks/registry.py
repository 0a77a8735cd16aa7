"""The modules of a task's package, their protocols, and functions that import them.

    module          torch?   read by
    study.py        no       everyone: the task's networks, its section of the study file, its rules and description
    release.py      no       the server and the simulation: the figures of noised counts, and the model to release
    networks.py     yes      `networks/build.py`: the task's networks with their initial weights
    objective.py    yes      a site: the rows to train on, the loss, and the score of a held-out patient
    assess.py       yes      the simulation: how good a model is
    exported.py     yes      export and `verify`: the module of the ONNX file; only tasks with `COMMANDS.onnx` have it
    use.py          yes      programs that use a trained model; only tasks with `COMMANDS.generate` have it

Modules satisfy these protocols structurally. They are named by strings and imported on first use, because a server must
not load torch, and because a study's schema is needed before any network.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, cast

from wardround.tasks import TASKS

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import torch
    from torch import nn

    from wardround.metrics.noised_auc import ScoreHistogram
    from wardround.study.load import Study
    from wardround.study.schema import DataSection, ModelSection, Section
    from wardround.tasks.assessment import Assessment, ComparisonRow, ReportTable, SiteData, SyntheticImages, Trainer
    from wardround.tasks.objective import Objective, StepTools
    from wardround.tasks.onnx_form import OnnxForm

Weights = TypeVar("Weights")


@dataclass(frozen=True, kw_only=True)
class Commands:
    """What the programs can do with a study or a run of a task, beside training and assessing it.

    `run` trains on phantom hospitals where no data are named if `phantoms` is true, and asks for data if it is not.
    `compare` needs the function of `assess.py` that `TaskAssess` names; None: it refuses. `attack` needs a classifier
    and `LINEAR_HEAD`.
    `generate` needs `use.py`. `onnx`: a released model leaves as an ONNX file too (`handover/onnx_export.py`), which
    needs `exported.py` and `onnx_form` of `release.py`. `explain`: the file shows on a picture why the model decides
    so, and leaves as a MONAI bundle, which needs images. `personalise`: a site may train a released model further and
    test it on its own patients, which needs a network that maps rows to logits.
    """

    phantoms: bool = False
    compare: Literal["settings", "methods"] | None = None
    attack: bool = False
    generate: bool = False
    onnx: bool = False
    explain: bool = False
    personalise: bool = False


class TaskStudy(Protocol):
    """`study.py`: the rules for studies of this task.

    It may also have `COMMANDS: Commands`; without it none of these commands applies to the task. It may have `SOURCE:
    str`, the source of data that the task reads (`wardround.sources`); without it the task reads images. It may have
    `PUBLIC_START: Mapping[str, str]`, what the weights of model.init = "phantom" are for a network, in words. It may
    have `LINEAR_HEAD: Mapping[str, Mapping[str, Any]]`, by section the settings with which every study of the task
    trains a linear head over features: `attack` plants its canaries in such a study.
    """

    NETWORKS: tuple[str, ...]  # values of model.name
    PHANTOM_WEIGHTS: tuple[str, ...]  # the networks that ship weights for model.init = "phantom"
    SECTION: type[Section] | None  # the task's own section, `[NAME]` in the file; None if it has none

    def check(self, study: Study) -> None:
        """Raise `ValueError`, "section.key: the fault", if sections of the study contradict each other."""

    def learns(self, study: Study, labels: str) -> str:
        """Return the end of the sentence "This study trains a network ...". `labels` are safe to print."""


class TaskRelease(Protocol):
    """`release.py`: the figures and the model that leave a federation. `onnx_form` is needed with `COMMANDS.onnx`."""

    SCORES_LABELS: bool  # whether the released counts are of scores for two labels, and so have an AUC

    def figures(self, histogram: ScoreHistogram) -> dict[str, Any]:
        """Return the task's own figures from the sum of the sites' noised counts, to be added to `federated_test`."""

    def released_weights(
        self, figures: Mapping[str, Any] | None, trained: Weights, start: Weights
    ) -> tuple[Weights, dict[str, Any]]:
        """Return the weights that a run releases, and the entries about this choice for `result.json`."""

    def manifest(self, study: Study) -> dict[str, Any]:
        """Return the task's entries in the manifest of a released model, for programs that use the model."""

    def card_lines(self, figures: Mapping[str, Any]) -> list[str]:
        """Return the lines of the model card about the task's own figures, in Markdown."""

    def onnx_form(self, study: Study) -> OnnxForm:
        """Return what the ONNX file of a released model reads and returns."""


class TaskExported(Protocol):
    """`exported.py`: the module of the ONNX file."""

    def exported(self, network: nn.Module, study: Study) -> tuple[nn.Module, float | None]:
        """Return a module with the input and outputs of `release.onnx_form`, and the largest `distance` of a row that
        resembles what the network knows; None if the file has no such output.
        """

    def fixed_rows(self, study: Study, count: int) -> np.ndarray:
        """Return `count` rows, always the same ones, on which an exported graph is likely to differ from torch."""


class TaskNetworks(Protocol):
    """`networks.py`: the task's networks."""

    def first_weights(self, model: ModelSection, data: DataSection, section: Section | None) -> nn.Module:
        """Return the network of `model.name` with the weights of `model.init`, float32 on the CPU.

        Raises:
            ModelError: If a weight file is missing, damaged or does not fit.
        """


class TaskObjective(Protocol):
    """`objective.py`: training and scoring at a site. Shapes: N rows, n rows of one patient, P patients."""

    def usable_rows(self, study: Study, labels_N: np.ndarray) -> np.ndarray:
        """Return the rows to train or test on, bool (N,). `labels_N`: int16, -1 for no label."""

    def reads_features(self, study: Study) -> bool:
        """Return whether training reads frozen features of images (`network.features`) instead of the images."""

    def objective_of(self, network: nn.Module, study: Study, tools: StepTools) -> Objective:
        """Return the objective that the training loop minimises over patients."""

    def patient_score(
        self, network: nn.Module, study: Study, device: torch.device
    ) -> Callable[[Iterable[np.ndarray]], float]:
        """Return a function from one held-out patient's images, uint8 (n, C, H, W), to this patient's score."""

    def is_positive(self, labels_n: np.ndarray) -> bool:
        """Return whether a held-out patient counts as positive."""


class TaskAssess(Protocol):
    """`assess.py`: how good a model is, by a simulation that may look at every patient. See `assessment.py`.

    `settings_rows` is needed where `COMMANDS.compare` is "settings", the other two where it is "methods".
    """

    def assessment_of(self, study: Study, sites: Sequence[SiteData], out: Path, trainer: Trainer) -> Assessment:
        """The assessment of a run, noting in the run's folder `out`.

        Raises:
            DataError: nobody is held out to test on.
        """

    def settings_rows(
        self,
        study: Study,
        sites: Sequence[SiteData],
        others: Sequence[SiteData],
        settings: Sequence[str],
        trainer: Trainer,
    ) -> list[ComparisonRow]:
        """A fold of `compare`, for a task that is measured by AUC: train in the settings, test on what is held out.

        Rows as docs/files.md describes them for comparison.json, without epsilon, split, fold and draw.
        """

    def methods_rows(
        self, study: Study, sites: Sequence[SiteData], epsilons: Sequence[float], trainer: Trainer
    ) -> list[ComparisonRow]:
        """A fold of `compare`, for a task that is compared with other methods: train at each epsilon, test every
        method on what is held out. Rows without split, fold and draw.
        """

    def methods_table(self, rows: Sequence[ComparisonRow]) -> ReportTable:
        """The rows of all folds for a terminal."""


class TaskUse(Protocol):
    """`use.py`: what a trained model does for a person."""

    def make_images(
        self,
        network: nn.Module,
        count: int,
        seed: int,
        label: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> SyntheticImages:
        """`count` images of no patient, of one label or of those that come; the same arguments give the same images."""


def commands_of(task: str) -> Commands:
    """The task's `COMMANDS`, or none of them."""
    found: Commands = getattr(study_part(task), "COMMANDS", Commands())
    return found


def source_of_task(task: str) -> str:
    """The name of the source of data that the task reads."""
    return str(getattr(study_part(task), "SOURCE", "images"))


def public_start(task: str, network: str) -> str:
    """What the weights of model.init = "phantom" are, for people."""
    known: Mapping[str, str] = getattr(study_part(task), "PUBLIC_START", {})
    return known.get(network, "weights learned from generated phantoms")


def linear_head(task: str) -> Mapping[str, Mapping[str, Any]]:
    """Return the task's `LINEAR_HEAD`; a task with `COMMANDS.attack` has it."""
    found: Mapping[str, Mapping[str, Any]] = getattr(study_part(task), "LINEAR_HEAD", {})
    return found


def study_part(task: str) -> TaskStudy:
    """Return the task's `study.py`."""
    return cast(TaskStudy, _module(task, "study"))


def release_part(task: str) -> TaskRelease:
    """Return the task's `release.py`."""
    return cast(TaskRelease, _module(task, "release"))


def networks_part(task: str) -> TaskNetworks:
    """Return the task's `networks.py`."""
    return cast(TaskNetworks, _module(task, "networks"))


def objective_part(task: str) -> TaskObjective:
    """Return the task's `objective.py`."""
    return cast(TaskObjective, _module(task, "objective"))


def assess_part(task: str) -> TaskAssess:
    """The task's `assess.py`."""
    return cast(TaskAssess, _module(task, "assess"))


def exported_part(task: str) -> TaskExported:
    """Return the `exported.py` of a task with `COMMANDS.onnx`."""
    return cast(TaskExported, _module(task, "exported"))


def use_part(task: str) -> TaskUse:
    """The `use.py` of a task with `COMMANDS.generate`."""
    return cast(TaskUse, _module(task, "use"))


def networks_of_tasks() -> dict[str, str]:
    """Return every network's name -> its task."""
    return {network: task for task in TASKS for network in study_part(task).NETWORKS}


def with_phantom_weights() -> tuple[str, ...]:
    """Return the networks that ship weights trained on phantoms."""
    return tuple(network for task in TASKS for network in study_part(task).PHANTOM_WEIGHTS)


def _module(task: str, name: str) -> ModuleType:
    """Import a module of a task. `task` must be a key of `TASKS`, so a peer's text cannot select an import."""
    return importlib.import_module(f"{TASKS[task]}.{name}")
