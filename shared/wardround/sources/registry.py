"""The `study.py` of each source: the `[data]` section of its studies, and what an approver is told about it.

Modules satisfy the protocol structurally and are imported on first use, as the modules of a task are.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Protocol, cast

from wardround.sources import SOURCES
from wardround.tasks import registry as tasks

if TYPE_CHECKING:
    from wardround.study.load import Study
    from wardround.study.schema import DataSection


class SourceStudy(Protocol):
    """`study.py`: the rules for studies of this source. It must not import torch."""

    SECTION: type[DataSection]  # `[data]` in the file
    ROW: str  # what one row of a cohort is, for people: "image", "record"

    HUB_TASK: str  # what Hugging Face calls a classification of such rows
    UNLIKE: str  # how other data of this source may differ, for the limits of a model: "another kind"

    def check(self, study: Study) -> None:
        """Raise `ValueError`, "section.key: the fault", if `[data]` contradicts another section."""

    def kind(self, study: Study) -> str:
        """Return what the study reads, in the plural: "CT images"."""

    def reads(self, study: Study) -> str:
        """Return which data of a site the study reads, the start of a sentence; `quoted` texts only."""


def source_study(source: str) -> SourceStudy:
    """Return the `study.py` of a source. `source` must be a key of `SOURCES`."""
    return cast(SourceStudy, importlib.import_module(f"{SOURCES[source]}.study"))


def source_name(study: Study) -> str:
    """Return the name of the source that a study reads: that of its task."""
    return tasks.source_of_task(study.study.task)


def of_study(study: Study) -> SourceStudy:
    """Return the `study.py` of the source that a study reads."""
    return source_study(source_name(study))
