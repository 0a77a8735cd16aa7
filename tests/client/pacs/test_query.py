"""Studies are listed completely although a PACS limits its answers, and where that is impossible it is reported."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import date, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wardround.errors import UsageError
from wardround_client.pacs import query
from wardround_client.pacs.node import Rows
from wardround_client.pacs.query import FoundSeries, Wanted, check_request, find_objects, find_studies

TODAY = date(2024, 3, 1)


class Limited:
    """A PACS with studies at given moments, which returns at most `limit` of them, silently or not."""

    def __init__(self, moments: list[datetime], limit: int, *, silent: bool) -> None:
        self.moments, self.limit, self.cuts_silently, self.asked = moments, limit, silent, 0

    def find(self, level: str, match: Mapping[str, str], wanted: Iterable[str]) -> Rows:
        self.asked += 1
        low, _, high = match["StudyDate"].partition("-")
        first, _, last = match.get("StudyTime", "000000-235959.999999").partition("-")
        rows = [
            {"StudyInstanceUID": f"1.2.{number}"}
            for number, one in enumerate(self.moments)
            if low <= f"{one:%Y%m%d}" <= (high or low) and first <= f"{one:%H%M%S}" <= last
        ]
        if self.cuts_silently:
            return Rows(rows=rows[: self.limit])
        return Rows(rows=rows[: self.limit], limited=len(rows) > self.limit)


MOMENTS = st.lists(
    st.datetimes(datetime(2024, 1, 1), datetime(2024, 1, 20)).map(lambda one: one.replace(microsecond=0)),
    max_size=60,
    unique_by=lambda one: (one.date(), one.hour, one.minute),
)


@given(MOMENTS, st.integers(5, 20), st.booleans())
def test_every_study_is_listed_whatever_the_limit(moments, limit, silent):
    finder = Limited(moments, limit, silent=silent)
    found = find_studies(finder, Wanted(first=date(2024, 1, 1)), TODAY)
    assert len(found.studies) == len(moments) and not found.incomplete


def test_without_a_limit_few_further_queries_are_needed():
    moments = [datetime(2024, 1, 1 + number % 28, 8, number // 28) for number in range(280)]
    finder = Limited(moments, 10_000, silent=True)
    within = Wanted(first=date(2024, 1, 1), last=date(2024, 1, 28))
    assert len(find_studies(finder, within, TODAY).studies) == 280
    assert finder.asked == 3
    told = Limited(moments, 10_000, silent=False)
    find_studies(told, within, TODAY)
    assert told.asked == 1


@pytest.mark.parametrize("silent", [True, False])
def test_more_studies_of_one_minute_than_the_limit_are_reported(silent):
    finder = Limited([datetime(2024, 1, 3, 9, 30, second) for second in range(20)], 10, silent=silent)
    found = find_studies(finder, Wanted(first=date(2024, 1, 1)), TODAY)
    assert len(found.studies) == 10 and len(found.remarks) == 1
    assert found.incomplete is not silent
    assert ("of one minute" if silent else "2024-01-03 09:30") in found.remarks[0]


def test_a_search_gives_up_after_many_queries_and_says_so(monkeypatch):
    monkeypatch.setattr(query, "MOST_QUERIES", 50)
    finder = Limited([datetime(2024, 1, 3, hour, minute) for hour in range(24) for minute in range(60)], 5, silent=True)
    found = find_studies(finder, Wanted(first=date(2024, 1, 1)), TODAY)
    assert finder.asked <= 51 and found.incomplete and "more than 50 queries" in found.remarks[0]


class Listing:
    """A PACS that lists the same objects for every query."""

    cuts_silently = False

    def __init__(self, *rows: dict[str, str]) -> None:
        self.rows = list(rows)

    def find(self, level: str, match: Mapping[str, str], wanted: Iterable[str]) -> Rows:
        return Rows(rows=self.rows)


@pytest.mark.parametrize("wrong", ["9" * 70, "x", "1.2.", ""])
def test_an_invalid_class_is_left_out_and_its_object_is_not(wrong):
    finder = Listing(
        {"SOPInstanceUID": "1.2.1", "SOPClassUID": wrong}, {"SOPInstanceUID": "1.2.2", "SOPClassUID": "1.3"}
    )
    found = find_objects(finder, FoundSeries(study_uid="1.1", uid="1.2"))
    assert found.classes == {"1.2.1": "", "1.2.2": "1.3"} and found.whole


def test_a_request_has_dates_or_one_list():
    row = ((2, "1.2"),)
    for wanted in (
        Wanted(),
        Wanted(last=TODAY),
        Wanted(first=TODAY, studies=row),
        Wanted(accessions=row, studies=row),
        Wanted(first=TODAY, last=date(2024, 1, 1)),
        Wanted(first=TODAY, modality="C*"),
    ):
        with pytest.raises(UsageError):
            check_request(wanted)
    check_request(Wanted(first=TODAY))
    check_request(Wanted(studies=row, modality="CT"))
