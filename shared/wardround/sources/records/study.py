"""Patients' records in a study: the `[data]` section, which says which variables and hours are read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator, Field, model_validator

from wardround.errors import StudyError
from wardround.printable import quoted
from wardround.sources.records.vocabulary import load_vocabulary
from wardround.study.schema import DataSection, Text
from wardround.text import count_text

if TYPE_CHECKING:
    from wardround.study.load import Study

ROW = "record"
HUB_TASK = "tabular-classification"
UNLIKE = "another kind, unit or age"
MOST_HOURS = 336  # two weeks; the memory of a row grows with it


def _known_vocabulary(name: str) -> str:
    try:
        load_vocabulary(name)
    except StudyError as error:
        raise ValueError(str(error).removeprefix("data.vocabulary: ")) from None
    return name


class RecordsData(DataSection):
    """`[data]` of a study of records: the variables, the hours that are read, and the outcome.

    `window_hours` is 1 for tables with one row a patient. The second label means that the number in the column
    `outcome` is above `outcome_above`; a column of texts holds the labels' names instead. With `horizon_hours` an
    outcome counts only if it happened within so many hours after the window.
    """

    vocabulary: Annotated[str, Field(max_length=64), AfterValidator(_known_vocabulary)]
    window_hours: Annotated[int, Field(ge=1, le=MOST_HOURS)] = 48
    outcome: Text
    outcome_above: Annotated[float, Field(ge=-1e9, le=1e9)] = 0.0
    horizon_hours: Annotated[float, Field(gt=0, le=87_600)] | None = None  # at most ten years

    @model_validator(mode="after")
    def _two_labels(self) -> RecordsData:
        if len(self.labels) != 2:
            raise ValueError("labels: an outcome has two labels, first the one without the event")
        return self

    @property
    def row_shape(self) -> tuple[int, int]:
        """The shape of a row: hours and variables."""
        return self.window_hours, len(load_vocabulary(self.vocabulary).variables)


SECTION = RecordsData


def check(study: Study) -> None:
    """Raise `ValueError` if a patient is asked for more than one row: a stay is one."""
    if study.privacy.images_per_patient not in ("all", 1):
        raise ValueError("privacy.images_per_patient: a patient of a study of records has one row; leave it out")


def kind(study: Study) -> str:
    """Return what the study reads, in the plural."""
    return "stays" if records_data(study).window_hours > 1 else "patients"


def reads(study: Study) -> str:
    """Return which records of a site the study reads, for a person who approves it."""
    data = records_data(study)
    vocabulary = load_vocabulary(data.vocabulary)
    measured = sum(not variable.of_the_stay for variable in vocabulary.variables)
    facts = [variable.title for variable in vocabulary.variables if variable.of_the_stay]
    of_stay = f"{', '.join(facts)}; " if facts else ""
    if measured and data.window_hours > 1:
        what = f"{count_text(measured, 'measurement')} of the first {data.window_hours} hours of each stay"
    else:
        what = "one row of a table for each patient"
    return f"{what} ({vocabulary.title}); {of_stay}and whether {quoted(data.outcome)} was {quoted(data.labels[1])}"


def records_data(study: Study) -> RecordsData:
    """Return the `[data]` of a study of records. Raises `TypeError` for a study of another source."""
    if not isinstance(study.data, RecordsData):
        raise TypeError(f"{study.study.name} is not a study of records")
    return study.data
