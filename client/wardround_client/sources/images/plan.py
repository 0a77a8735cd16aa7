"""Plans which images to make from a site's files: sorts series, matches labels and locates marked points.

The module consists of pure functions over `ScannedFile`s; nothing is decoded here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np

from wardround.errors import DataError, required
from wardround.sources.images.study import ImageData
from wardround.storage.table import spellings_of_number
from wardround_client.sources.images.attributes import lesion_size_of
from wardround_client.sources.images.folder.class_folders import label_index
from wardround_client.sources.images.folder.layout import SiteSource
from wardround_client.sources.images.folder.tables import LabelRow, LabelTable
from wardround_client.sources.images.quality.reasons import REASONS
from wardround_client.sources.images.stages import Finding, Frame, ImageRequest, ScannedFile
from wardround_client.sources.keyed import keyed

MARK_NEIGHBOURS = 1  # slices on either side of the one nearest to a point in mm that also become images, if they are
MARK_REACH_MM = 3.0  # at most this far from the point: with thick slices the neighbour may not show the finding
MARK_DISTANCE_MM = 5.0  # a point farther than this (or one slice distance) from every slice lies outside the series
SAME_COSINE = 0.01  # direction cosines of one series differ by less: about half a degree
GAP_FACTOR = 1.5  # a step larger than the usual one by this factor means that a slice is missing

Place = tuple[int, int]  # file, frame


@dataclass(frozen=True, kw_only=True)
class Series:
    """The frames of one orientation in one series, sorted along their normal; `at_mm` is None without positions."""

    places: tuple[Place, ...]
    at_mm: np.ndarray | None

    @property
    def step_mm(self) -> float:
        """The median distance between neighbouring slices; 0 if there is only one position, or none."""
        steps = np.diff(np.unique(np.round(self.at_mm, 3))) if self.at_mm is not None else np.empty(0)
        return float(np.median(steps)) if steps.size else 0.0

    def neighbour(self, index: int, direction: int) -> Place | None:
        """Return the next slice at a different position, below (-1) or above (+1); None at the end of the series."""
        here = index + direction
        while 0 <= here < len(self.places):
            if self.at_mm is None or abs(self.at_mm[here] - self.at_mm[index]) > 1e-3:
                return self.places[here]
            here += direction
        return None

    def has_gap(self, index: int) -> bool:
        """Whether a slice is missing next to this one."""
        if self.at_mm is None or len(self.places) < 4:
            return False
        positions = np.unique(np.round(self.at_mm, 3))
        steps = np.abs(positions - round(float(self.at_mm[index]), 3))
        sides = (steps[positions > self.at_mm[index] + 1e-3], steps[positions < self.at_mm[index] - 1e-3])
        return any(side.size > 0 and side.min() > GAP_FACTOR * self.step_mm for side in sides)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The images to be made, in their order in the cohort, and the findings of the planning."""

    requests: tuple[ImageRequest, ...]
    findings: tuple[Finding, ...]
    left_out: frozenset[int] = frozenset()  # files without a fault of which the study uses no image


def plan_images(
    source: SiteSource, scanned: Sequence[ScannedFile], owners: Sequence[str | None], data: ImageData, key: bytes
) -> Plan:
    """Plan the images of a site. `owners` gives the pseudonym of each file. Files with a `fault` are skipped."""
    series = group_series(scanned, owners)
    findings: list[Finding] = []
    if source.labels is None:
        labels = [file.label for file in source.files]
        places = [place for one in series for place in one.places]
        chosen = [ImageRequest(file=file, frame=frame, label=labels[file]) for file, frame in places]
        if data.region == "marked":
            chosen = [
                replace(request, fault="no_mark") if scanned[request.file].kind == "dicom" else request
                for request in chosen
            ]
    else:
        chosen = _labelled(source.labels, series, scanned, data, key, findings)
    faults = [scanned[request.file].frames[request.frame].fault for request in chosen]
    chosen = [replace(request, fault=fault or request.fault) for request, fault in zip(chosen, faults, strict=True)]
    if data.channels == "slices":
        chosen = _with_neighbours(chosen, series, _strays(series, scanned, owners))
    findings.extend(_gaps(series, data))
    left_out = {index for index, file in enumerate(scanned) if not file.fault} - {request.file for request in chosen}
    left_out -= {finding.file for finding in findings if finding.file is not None and REASONS[finding.code].fault}
    if left_out:
        points = source.labels is not None and source.labels.has_points
        findings.append(Finding(code="not_marked" if points else "image_left_out", count=len(left_out)))
    return Plan(requests=tuple(chosen), findings=tuple(findings), left_out=frozenset(left_out))


def group_series(scanned: Sequence[ScannedFile], owners: Sequence[str | None]) -> list[Series]:
    """Group frames by patient, series, orientation and size, and sort each group along its normal.

    Groups are in file order. Frames without a position form a group of their own, sorted by instance number, so that
    one of them does not take the positions of the others.
    """
    groups: dict[tuple, list[Place]] = defaultdict(list)
    turns: dict[tuple, list[tuple[float, ...]]] = defaultdict(list)
    for index, file in enumerate(scanned):
        if file.fault:
            continue
        for number, frame in enumerate(file.frames):
            own = index if file.kind == "picture" else file.series_key
            placed = frame.position_mm is not None and frame.orientation is not None
            group = (owners[index], own, file.rows, file.columns, placed)
            groups[(*group, _turn(frame, turns[group]))].append((index, number))
    return [_sorted(places, scanned) for places in groups.values()]


def _turn(frame: Frame, known: list[tuple[float, ...]]) -> int:
    """Return the index of the frame's orientation among the known ones, to which a new one is added.

    Scanners write the cosines of one series with small differences.
    """
    cosines = frame.orientation or ()
    for number, other in enumerate(known):
        if len(other) == len(cosines) and all(
            abs(one - two) <= SAME_COSINE for one, two in zip(cosines, other, strict=True)
        ):
            return number
    known.append(cosines)
    return len(known) - 1


def _sorted(places: list[Place], scanned: Sequence[ScannedFile]) -> Series:
    frames = [scanned[file].frames[number] for file, number in places]
    numbers = [(scanned[file].instance_number, file, number) for file, number in places]
    if any(frame.position_mm is None or frame.orientation is None for frame in frames):
        order = sorted(range(len(places)), key=lambda index: numbers[index])
        return Series(places=tuple(places[index] for index in order), at_mm=None)
    direction = _normal(required(frames[0].orientation, "orientation"))
    at_mm = np.array([float(np.dot(direction, required(frame.position_mm, "position"))) for frame in frames])
    order = sorted(range(len(places)), key=lambda index: (round(cast(float, at_mm[index]), 3), numbers[index]))
    return Series(places=tuple(places[index] for index in order), at_mm=at_mm[order])


def _labelled(
    table: LabelTable,
    series: Sequence[Series],
    scanned: Sequence[ScannedFile],
    data: ImageData,
    key: bytes,
    findings: list[Finding],
) -> list[ImageRequest]:
    """Return requests for the frames that labels.csv refers to, and also for all others if it gives no points."""
    subjects = [_subject(file, table.subject_kind) for file in scanned]
    rows_of: dict[str, list[LabelRow]] = defaultdict(list)
    for row in table.rows:
        rows_of[keyed(key, table.subject_kind, row.subject)].append(row)
    present = set(subjects)
    unmatched = [row for subject, rows in rows_of.items() if subject not in present for row in rows]
    _refuse_damaged_ids(unmatched, table.subject_kind, present, key)
    if unmatched:
        findings.append(Finding(code="unmatched_label", count=len(unmatched)))
    known = {row.label: label_index(row.label, data) for row in table.rows}
    left_out = sum(known[row.label] is None for row in table.rows)
    if left_out:
        findings.append(Finding(code="label_left_out", count=left_out))
    chosen: list[ImageRequest] = []
    for one in series:
        for index, (file, frame) in enumerate(one.places):
            rows = rows_of.get(subjects[file], [])
            if not table.has_points:
                chosen.extend(_sized(_whole_frame(rows, file, frame, known), rows))
                continue
            for row in rows:
                label = known[row.label]
                if label is not None:
                    chosen.extend(_sized(_at_point(row, one, index, scanned, data, label, findings), [row]))
    if table.has_points:
        findings.extend(_points_outside(rows_of, subjects, series, scanned))
    return chosen


def _refuse_damaged_ids(unmatched: Sequence[LabelRow], kind: str, present: set[str], key: bytes) -> None:
    """Raise `DataError` if a row would match a file with the zeros that a spreadsheet takes from a number."""
    for row in unmatched:
        if any(keyed(key, kind, spelling) in present for spelling in spellings_of_number(row.subject)):
            raise DataError(
                f"labels.csv: row {row.row}: the identifier matches no file, but one that differs only in leading "
                "zeros or in .0; a spreadsheet has changed it: format the column as text, and export the table again"
            )


def _subject(file: ScannedFile, kind: str) -> str:
    return {"image": file.image_key, "series": file.series_key, "patient": file.patient_key}[kind]


def _whole_frame(rows: list[LabelRow], file: int, frame: int, known: dict[str, int | None]) -> list[ImageRequest]:
    labels = {known[row.label] for row in rows}
    if len(labels) > 1 or (None in labels and len({row.label for row in rows}) > 1):
        return [ImageRequest(file=file, frame=frame, fault="two_labels")]
    label = labels.pop() if labels else -1
    return [] if label is None else [ImageRequest(file=file, frame=frame, label=label)]  # None: counted as left out


def _at_point(
    row: LabelRow,
    series: Series,
    index: int,
    scanned: Sequence[ScannedFile],
    data: ImageData,
    label: int,
    findings: list[Finding],
) -> list[ImageRequest]:
    """Return the request of one row for one frame; empty if the row refers to a different frame."""
    file, number = series.places[index]
    place = f"labels.csv row {row.row}"
    if row.point_mm is not None:
        nearest = _nearest(row, series, scanned)
        if nearest is None or abs(index - nearest) > MARK_NEIGHBOURS:
            return []
        if index != nearest and _distances_mm(row, series, scanned)[index] > MARK_REACH_MM:
            return []
        mark_xy = _project(row, scanned[file].frames[number])
        fault = "no_spacing" if mark_xy is None else ""
        return [ImageRequest(file=file, frame=number, label=label, mark_xy=mark_xy, fault=fault, table_row=row.row)]
    if row.xy is None:
        fault = "no_mark" if data.region == "marked" else ""
        return [ImageRequest(file=file, frame=number, label=label, fault=fault, table_row=row.row)]
    if row.frame is None and len(scanned[file].frames) > 1:
        if number == 0:
            findings.append(Finding(code="mark_unclear", file=file, place=place))
        return []
    if (row.frame or 0) >= len(scanned[file].frames) and number == 0:
        findings.append(Finding(code="mark_outside", file=file, place=place))
    if (row.frame or 0) != number:
        return []
    return [ImageRequest(file=file, frame=number, label=label, mark_xy=row.xy, table_row=row.row)]


def _sized(requests: list[ImageRequest], rows: list[LabelRow]) -> list[ImageRequest]:
    """Return the requests with the band of the largest diameter that their rows of labels.csv give."""
    size = lesion_size_of(max((row.diameter_mm for row in rows if row.diameter_mm is not None), default=None))
    return [replace(request, lesion_size=size) for request in requests]


def _nearest(row: LabelRow, series: Series, scanned: Sequence[ScannedFile]) -> int | None:
    """Return the index of the slice nearest to a point in mm; None if the point lies outside the series."""
    if series.at_mm is None:
        return None
    distance = _distances_mm(row, series, scanned)
    index = int(np.argmin(distance))
    return index if distance[index] <= max(MARK_DISTANCE_MM, series.step_mm) else None


def _distances_mm(row: LabelRow, series: Series, scanned: Sequence[ScannedFile]) -> np.ndarray:
    """Return the distance of each slice of a series from a point, along the normal."""
    file, number = series.places[0]
    direction = _normal(required(scanned[file].frames[number].orientation, "orientation"))
    at_mm, point_mm = required(series.at_mm, "position"), required(row.point_mm, "point")
    return np.abs(at_mm - float(np.dot(direction, point_mm)))


def _project(row: LabelRow, frame: Frame) -> tuple[float, float] | None:
    """Return the pixel at a point in mm (inverse of PS3.3 equation C.7.6.2.1-1)."""
    if frame.spacing_mm is None:
        return None
    orientation = required(frame.orientation, "orientation")
    offset = np.subtract(required(row.point_mm, "point"), required(frame.position_mm, "position"))
    x = float(np.dot(offset, orientation[:3])) / frame.spacing_mm[1]
    y = float(np.dot(offset, orientation[3:])) / frame.spacing_mm[0]
    return x, y


def _points_outside(
    rows_of: dict[str, list[LabelRow]],
    subjects: Sequence[str],
    series: Sequence[Series],
    scanned: Sequence[ScannedFile],
) -> list[Finding]:
    """Return a finding for each row whose point in mm is not near any slice of its series, or has no place there."""
    findings = []
    by_subject: dict[str, list[Series]] = defaultdict(list)
    for one in series:
        by_subject[subjects[one.places[0][0]]].append(one)
    for subject, rows in rows_of.items():
        for row in rows:
            own = by_subject.get(subject, [])
            if row.point_mm is not None and own and all(_nearest(row, one, scanned) is None for one in own):
                code = "mark_outside" if any(one.at_mm is not None for one in own) else "no_position"
                findings.append(Finding(code=code, file=own[0].places[0][0], place=f"labels.csv row {row.row}"))
    return findings


def _strays(series: Sequence[Series], scanned: Sequence[ScannedFile], owners: Sequence[str | None]) -> frozenset[Place]:
    """Return the frames without a position in series whose other frames have one: their neighbours are unknown."""

    def of(one: Series) -> tuple[str | None, str]:
        file = one.places[0][0]
        return owners[file], scanned[file].series_key

    placed = {of(one) for one in series if one.at_mm is not None}
    return frozenset(place for one in series if one.at_mm is None and of(one) in placed for place in one.places)


def _with_neighbours(
    chosen: list[ImageRequest], series: Sequence[Series], strays: frozenset[Place]
) -> list[ImageRequest]:
    where = {place: (one, index) for one in series for index, place in enumerate(one.places)}
    result = []
    for request in chosen:
        one, index = where[(request.file, request.frame)]
        fault = request.fault or ("slice_gap" if one.has_gap(index) else "")
        if (request.file, request.frame) in strays:
            fault = "no_position"
        result.append(replace(request, below=one.neighbour(index, -1), above=one.neighbour(index, +1), fault=fault))
    return result


def _gaps(series: Sequence[Series], data: ImageData) -> list[Finding]:
    """Return a remark for each series with a gap.

    There are none if the study combines slices: the images have the fault instead.
    """
    if data.channels == "slices":
        return []
    return [
        Finding(code="slice_gap_seen", file=one.places[0][0])
        for one in series
        if any(one.has_gap(index) for index in range(len(one.places)))
    ]


def _normal(orientation: tuple[float, ...]) -> np.ndarray:
    return np.cross(orientation[:3], orientation[3:])
