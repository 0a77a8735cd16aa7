"""Which studies, series and objects of a PACS a pull is about, although a PACS limits the rows of an answer.

Some PACS report that they cut an answer short (C-FIND), others do it silently (QIDO-RS of Orthanc returns one row more
than its limit). A period is therefore split into halves whose answers are compared with that for the whole: if both
halves have studies and together no more than the whole, nothing was cut. A day is split by the time of the study.

Only dates, modality and identifiers are matched by the PACS. Body part and description are compared here, because PACS
differ in wildcards.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from typing import Any, Protocol

from wardround.errors import UsageError
from wardround.text import count_text
from wardround_client.pacs.identifiers import is_uid
from wardround_client.pacs.node import Row, Rows

EARLIEST = date(1900, 1, 1)
MODALITY = re.compile(r"[A-Z0-9_ ]{1,16}")  # DICOM's CS, without wildcards
MOST_QUERIES = 20_000  # of one search; a PACS that calls every answer cut would get one for each minute
FEWEST_SUSPECT = 5  # rows: no PACS limits its answers to fewer
STUDY_KEYS = ("StudyInstanceUID", "StudyDescription", "NumberOfStudyRelatedSeries")
SERIES_KEYS = (
    *("SeriesInstanceUID", "Modality", "BodyPartExamined", "SeriesDescription"),
    "NumberOfSeriesRelatedInstances",
)
OBJECT_KEYS = ("SOPInstanceUID", "SOPClassUID")
DAY = timedelta(days=1)
SHORTEST = timedelta(minutes=1)


class Finder(Protocol):
    """Queries of one kind. `cuts_silently` is whether answers may be cut short without a report."""

    cuts_silently: bool

    def find(self, level: str, match: Mapping[str, str], wanted: Iterable[str]) -> Rows:
        """Return the rows that match. Raises `PacsError`."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a pull asks for: a query, or a list of accession numbers or study UIDs.

    `accessions` and `studies` are pairs of a row of the user's table and its value. `annotations` is a modality, SR or
    SEG, whose series are wanted besides those that match.
    """

    first: date | None = None
    last: date | None = None
    modality: str | None = None
    body_part: str | None = None
    description: str | None = None
    annotations: str | None = None
    accessions: tuple[tuple[int, str], ...] = field(default=(), repr=False)
    studies: tuple[tuple[int, str], ...] = field(default=(), repr=False)

    @property
    def in_full(self) -> str:
        """The whole request as text, lists included."""
        return json.dumps([self.to_json(), self.accessions, self.studies])

    def to_json(self) -> dict[str, Any]:
        """Return what identifies the request, for the manifest."""
        return {
            "from": None if self.first is None else self.first.isoformat(),
            "to": None if self.last is None else self.last.isoformat(),
            "modality": self.modality,
            "body_part": self.body_part,
            "description": self.description,
            "annotations": self.annotations,
            "accessions": len(self.accessions),
            "studies": len(self.studies),
        }


@dataclass(frozen=True, kw_only=True)
class FoundStudy:
    """A study that matches. `series` is how many series the PACS says that it has, if it does."""

    uid: str = field(repr=False)
    description: str = field(repr=False, default="")
    series: int | None = None


@dataclass(frozen=True, kw_only=True)
class FoundSeries:
    """A series that matches. `count` is how many objects the PACS says that it has, if it does."""

    study_uid: str = field(repr=False)
    uid: str = field(repr=False)
    count: int | None = None


@dataclass(frozen=True, kw_only=True)
class FoundObjects:
    """The objects of a series: their classes by UID. `whole` is False if the PACS lists fewer than it has."""

    classes: dict[str, str] = field(repr=False)
    whole: bool = True


@dataclass(frozen=True, kw_only=True)
class FoundStudies:
    """The studies of a request, the rows of the user's table that match none, and remarks for the user."""

    studies: tuple[FoundStudy, ...]
    unmatched_rows: tuple[int, ...] = ()
    remarks: tuple[str, ...] = ()
    incomplete: bool = False


def check_request(wanted: Wanted) -> None:
    """Raise `UsageError` for a request without dates or a list, or with both, or with an invalid modality."""
    listed = bool(wanted.accessions) + bool(wanted.studies)
    if listed and (wanted.first or wanted.last):
        raise UsageError("give either dates or a list; the other options select within a list too")
    if listed == 2:
        raise UsageError("give either --accessions or --studies")
    if not listed and wanted.first is None:
        raise UsageError("say what to pull: --from DATE (and --to DATE), --accessions FILE or --studies FILE")
    if wanted.modality is not None and MODALITY.fullmatch(wanted.modality) is None:
        raise UsageError("--modality: give one modality, such as CT")
    if wanted.first is not None and wanted.last is not None and wanted.last < wanted.first:
        raise UsageError("--to: is before --from")


def find_studies(finder: Finder, wanted: Wanted, today: date) -> FoundStudies:
    """Return the studies of a request. `today` is the last day of a request without one. Raises `PacsError`."""
    if wanted.studies:
        return _listed(finder, "StudyInstanceUID", wanted.studies)
    if wanted.accessions:
        return _listed(finder, "AccessionNumber", wanted.accessions)
    match = {} if wanted.modality is None else {"ModalitiesInStudy": wanted.modality}
    search = _Search(finder, match)
    first, last = wanted.first or EARLIEST, wanted.last or max(today, wanted.first or EARLIEST)
    search.between(_midnight(first), _midnight(last) + DAY)
    remarks = []
    if search.gave_up:
        remarks.append(
            f"the search needs more than {MOST_QUERIES:,} queries, because the PACS cuts its answers short: ask for a "
            "shorter period, or give a list"
        )
    elif search.cut:
        remarks.append(
            f"the PACS returns no more than {search.most} studies for one query, and has more than that within "
            f"{', '.join(search.cut[:3])}: narrow the request there, or give a list"
        )
    elif search.unsure:
        remarks.append(
            f"the PACS returned {search.most} studies of one minute; if that is its limit for one query, there are "
            "more: compare the number, or give a list"
        )
    incomplete = bool(search.cut) or search.gave_up
    return FoundStudies(studies=_studies(search.rows.values()), remarks=tuple(remarks), incomplete=incomplete)


def find_series(finder: Finder, study: FoundStudy, wanted: Wanted) -> tuple[list[FoundSeries], bool]:
    """Return the series of a study that match, and whether the PACS listed all series. Raises `PacsError`."""
    rows = finder.find("SERIES", {"StudyInstanceUID": study.uid}, SERIES_KEYS)
    found = []
    for row in rows.rows:
        uid = row.get("SeriesInstanceUID")
        if is_uid(uid) and _matches(row, study, wanted):
            count = _count(row.get("NumberOfSeriesRelatedInstances"))
            found.append(FoundSeries(study_uid=study.uid, uid=str(uid), count=count))
    complete = not rows.limited and (study.series is None or len(rows.rows) >= study.series)
    return found, complete


def find_objects(finder: Finder, series: FoundSeries) -> FoundObjects:
    """Return the objects of a series. Raises `PacsError`."""
    match = {"StudyInstanceUID": series.study_uid, "SeriesInstanceUID": series.uid}
    rows = finder.find("IMAGE", match, OBJECT_KEYS)
    classes = {
        str(row["SOPInstanceUID"]): _uid(row.get("SOPClassUID"))
        for row in rows.rows
        if is_uid(row.get("SOPInstanceUID"))
    }
    whole = not rows.limited and (series.count is None or len(classes) >= series.count)
    return FoundObjects(classes=classes, whole=whole)


class _Search:
    """All studies within a period, whatever limit the PACS has.

    Attributes:
        rows: The answers by study.
        most: The most rows of one answer.
        cut: Periods that could not be split further and have more studies than the PACS returns.
        gave_up: Whether `MOST_QUERIES` were not enough.
        unsure: Whether an answer of `most` rows could not be split, so that it may have been cut.
    """

    def __init__(self, finder: Finder, match: Mapping[str, str]) -> None:
        self._finder, self._match = finder, match
        self.rows: dict[str, Row] = {}
        self.most = 0
        self.cut: list[str] = []
        self.gave_up = False
        self._unsplit = self._asked = 0

    @property
    def unsure(self) -> bool:
        return self._finder.cuts_silently and FEWEST_SUSPECT <= self._unsplit == self.most

    def between(self, begin: datetime, end: datetime) -> None:
        """Find what lies in a period; `end` is not part of it."""
        self._split(begin, end, self._ask(begin, end))

    def _split(self, begin: datetime, end: datetime, answer: Rows) -> None:
        """Find what an answer may have left out."""
        suspect = self._finder.cuts_silently and len(answer.rows) >= FEWEST_SUSPECT
        if not answer.limited and not suspect:
            return
        if end - begin <= SHORTEST:
            if answer.limited:
                self.cut.append(f"{begin:%Y-%m-%d %H:%M}")
            self._unsplit = max(self._unsplit, len(answer.rows))
            return
        if self._asked >= MOST_QUERIES:
            self.gave_up = True
            return
        middle = _middle(begin, end)
        parts = [(begin, middle, self._ask(begin, middle)), (middle, end, self._ask(middle, end))]
        together = len({one for _, _, part in parts for one in _uids(part)})
        proved = all(part.rows for _, _, part in parts) and together <= len(set(_uids(answer)))
        if proved and not answer.limited and not any(part.limited for _, _, part in parts):
            return
        for first, last, part in parts:
            self._split(first, last, part)

    def _ask(self, begin: datetime, end: datetime) -> Rows:
        self._asked += 1
        rows = self._finder.find("STUDY", {**self._match, **_period(begin, end)}, STUDY_KEYS)
        for row in rows.rows:
            if is_uid(row.get("StudyInstanceUID")):
                self.rows[str(row["StudyInstanceUID"])] = row
        self.most = max(self.most, len(rows.rows))
        return rows


def _period(begin: datetime, end: datetime) -> dict[str, str]:
    """Return the keys that match a period: of whole days, or within one day."""
    last = end - timedelta(microseconds=1)
    if begin == _midnight(begin.date()) and end == _midnight(end.date()):
        days = f"{begin:%Y%m%d}" if begin.date() == last.date() else f"{begin:%Y%m%d}-{last:%Y%m%d}"
        return {"StudyDate": days}
    return {"StudyDate": f"{begin:%Y%m%d}", "StudyTime": f"{begin:%H%M%S}-{last:%H%M%S}.999999"}


def _middle(begin: datetime, end: datetime) -> datetime:
    """Return where a period is split: between two days, or at a whole minute."""
    unit = DAY if end - begin > DAY else SHORTEST
    return begin + unit * max(1, (end - begin) // unit // 2)


def _midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day)


def _uids(rows: Rows) -> list[str]:
    return [row["StudyInstanceUID"] for row in rows.rows if "StudyInstanceUID" in row]


def _listed(finder: Finder, keyword: str, listed: Sequence[tuple[int, str]]) -> FoundStudies:
    """Find each identifier of a list by itself."""
    found: dict[str, FoundStudy] = {}
    unmatched, cut = [], 0
    for row, value in listed:
        rows = finder.find("STUDY", {keyword: value}, STUDY_KEYS)
        cut += rows.limited
        studies = _studies(rows.rows)
        if not studies:
            unmatched.append(row)
        found.update({study.uid: study for study in studies})
    remarks = (f"the PACS cut the answers for {count_text(cut, 'row')} of the list short",) if cut else ()
    return FoundStudies(
        studies=tuple(found.values()), unmatched_rows=tuple(unmatched), remarks=remarks, incomplete=cut > 0
    )


def _studies(rows: Iterable[Row]) -> tuple[FoundStudy, ...]:
    return tuple(
        FoundStudy(
            uid=row["StudyInstanceUID"],
            description=row.get("StudyDescription", ""),
            series=_count(row.get("NumberOfStudyRelatedSeries")),
        )
        for row in rows
        if is_uid(row.get("StudyInstanceUID"))
    )


def _matches(row: Row, study: FoundStudy, wanted: Wanted) -> bool:
    """Return whether a series matches. A body part that the PACS does not give counts as a match, as in `ingest`."""
    if wanted.annotations is not None and row.get("Modality") == wanted.annotations:
        return True
    if wanted.modality is not None and row.get("Modality", "").casefold() != wanted.modality.casefold():
        return False
    part = row.get("BodyPartExamined", "")
    if wanted.body_part is not None and part and part.casefold() != wanted.body_part.casefold():
        return False
    if wanted.description is not None:
        texts = f"{study.description}\n{row.get('SeriesDescription', '')}".casefold()
        return wanted.description.casefold() in texts
    return True


def _uid(text: str | None) -> str:
    """Return a UID, or "" for anything else, which could not be offered in an association."""
    return text if text is not None and is_uid(text) else ""


def _count(text: str | None) -> int | None:
    return int(text) if text is not None and text.isascii() and text.isdigit() and len(text) < 10 else None
