"""Labels that an archive already has: reports of measurements (SR, TID 1500) and segmentations (SEG) as a labels.csv.

A finding gets a label if one of its coded values, or a segment's name or type, is the name of a label of the study. Its
place is the image, or the region in an image, to which a report refers; in a segmentation every image on which the
segment lies. Names of patients and free text are not read.
"""

from __future__ import annotations

import csv
import io
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pydicom
from pydicom import Dataset

from wardround.sources.images.study import ImageData
from wardround.storage.table import same_text

COLUMNS = ("SOPInstanceUID", "frame", "x", "y", "label")
MODALITIES = {"sr": "SR", "seg": "SEG"}
MEASUREMENT_GROUP = ("125007", "DCM")
DEEPEST = 16  # levels of a report's content; TID 1500 has six
MOST_VALUES = 2**31  # pixels of a segmentation
FIRST_PIXEL_CENTRE = 0.5  # in SCOORD the corner of the first pixel is 0\\0, in labels.csv its centre (PS3.3 C.18.6)


@dataclass(frozen=True, kw_only=True)
class LabelledPlace:
    """An image, a frame of it (counted from 1) and a point in it (column, row, from 0), if known, with its label."""

    sop_uid: str = field(repr=False)
    label: str
    frame: int | None = None
    xy: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Annotations:
    """What was found in a folder: places, objects read, findings without a label or place, unreadable objects."""

    places: tuple[LabelledPlace, ...]
    objects: int
    without_label: int
    without_place: int
    unreadable: int

    def table(self) -> str:
        """Return the labels.csv."""
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        points = any(one.xy is not None for one in self.places)
        columns = [name for name in COLUMNS if points or name not in ("x", "y")]
        writer.writerow(columns)
        for one in self.places:
            x, y = ("", "") if one.xy is None else (f"{one.xy[0]:.2f}", f"{one.xy[1]:.2f}")
            cells = {"SOPInstanceUID": one.sop_uid, "frame": one.frame or "", "x": x, "y": y, "label": one.label}
            writer.writerow([cells[name] for name in columns])
        return text.getvalue()


def read_annotations(paths: Sequence[Path], kind: str, data: ImageData) -> Annotations:
    """Read all reports (`kind` "sr") or segmentations ("seg") among files; others are passed over."""
    known = {same_text(label): label for label in data.labels}
    places: list[LabelledPlace] = []
    objects = without_label = without_place = unreadable = 0
    for path in paths:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["Modality"])
                if header.get("Modality") != MODALITIES[kind]:
                    continue
                objects += 1
                found = list(_report(path, known) if kind == "sr" else _segmentation(path, known))
        except Exception:  # of a damaged object: pydicom raises almost anything
            unreadable += 1
            continue
        for label, where in found:
            without_label += label is None
            without_place += label is not None and not where
            places += [one for one in where if label is not None]
    if data.region != "marked":
        places = [LabelledPlace(sop_uid=one.sop_uid, frame=one.frame, label=one.label) for one in places]
    return Annotations(
        places=tuple(dict.fromkeys(places)),
        objects=objects,
        without_label=without_label,
        without_place=without_place,
        unreadable=unreadable,
    )


Finding = tuple[str | None, list[LabelledPlace]]


def _report(path: Path, known: dict[str, str]) -> Iterator[Finding]:
    """Yield the label and the places of each measurement group."""
    for group in _groups(pydicom.dcmread(path), 0):
        labels = {
            known[text]
            for item in _items(group)
            if item.get("ValueType") == "CODE"
            for code in item.get("ConceptCodeSequence", [])
            if (text := same_text(str(code.get("CodeMeaning", "")))) in known
        }
        if len(labels) != 1:  # none, or findings that contradict each other
            yield None, []
            continue
        (label,) = labels
        yield label, list(_report_places(group, label))


def _groups(item: Dataset, depth: int) -> Iterator[Dataset]:
    if depth > DEEPEST:
        return
    for child in _items(item):
        if child.get("ValueType") == "CONTAINER" and _concept(child) == MEASUREMENT_GROUP:
            yield child
        else:
            yield from _groups(child, depth + 1)


def _report_places(group: Dataset, label: str) -> Iterator[LabelledPlace]:
    for item in _items(group):
        if item.get("ValueType") == "IMAGE":
            yield from _references(item, label, None)
        elif item.get("ValueType") == "SCOORD":
            points = np.asarray(item.GraphicData, dtype=float).reshape(-1, 2)
            if item.get("GraphicType") == "POLYLINE" and len(points) > 1 and (points[0] == points[-1]).all():
                points = points[:-1]  # a closed line repeats its first point
            x, y = (float(value) - FIRST_PIXEL_CENTRE for value in points.mean(axis=0))
            for image in _items(item):
                if image.get("ValueType") == "IMAGE":
                    yield from _references(image, label, (x, y))


def _references(item: Dataset, label: str, xy: tuple[float, float] | None) -> Iterator[LabelledPlace]:
    for reference in item.get("ReferencedSOPSequence", []):
        frames = reference.get("ReferencedFrameNumber")
        numbers = [None] if frames is None else [int(one) for one in np.atleast_1d(frames)]
        for frame in numbers:
            yield LabelledPlace(sop_uid=str(reference.ReferencedSOPInstanceUID), label=label, frame=frame, xy=xy)


def _segmentation(path: Path, known: dict[str, str]) -> Iterator[Finding]:
    """Yield the label and the places of each segment."""
    segmentation = pydicom.dcmread(path)
    rows, columns = int(segmentation.Rows), int(segmentation.Columns)
    frames = segmentation.PerFrameFunctionalGroupsSequence
    if len(frames) * rows * columns > MOST_VALUES:
        raise ValueError("more pixels than memory should hold")
    masks_FHW = segmentation.pixel_array.reshape(-1, rows, columns)
    for segment in segmentation.SegmentSequence:
        names = [segment.get("SegmentLabel", "")]
        names += [code.get("CodeMeaning", "") for code in segment.get("SegmentedPropertyTypeCodeSequence", [])]
        labels = {known[text] for name in names if (text := same_text(str(name))) in known}
        if len(labels) != 1:
            yield None, []
            continue
        (label,) = labels
        places = []
        for frame, mask_HW in zip(frames, masks_FHW, strict=True):
            (identification,) = frame.SegmentIdentificationSequence
            if int(identification.ReferencedSegmentNumber) != int(segment.SegmentNumber) or not mask_HW.any():
                continue
            y, x = (float(one.mean()) for one in np.nonzero(mask_HW))
            for derivation in frame.get("DerivationImageSequence", []):
                for source in derivation.get("SourceImageSequence", []):
                    number = source.get("ReferencedFrameNumber")
                    places.append(
                        LabelledPlace(
                            sop_uid=str(source.ReferencedSOPInstanceUID),
                            label=label,
                            frame=None if number is None else int(np.atleast_1d(number)[0]),
                            xy=(x, y),
                        )
                    )
        yield label, places


def _items(item: Dataset) -> Sequence[Dataset]:
    return item.get("ContentSequence", [])


def _concept(item: Dataset) -> tuple[str, str]:
    for code in item.get("ConceptNameCodeSequence", []):
        return str(code.get("CodeValue", "")), str(code.get("CodingSchemeDesignator", ""))
    return "", ""
