"""The two tables that people write by hand, `manifest.csv` and `labels.csv`.

They are read strictly, and errors name the row and the column. Rows are numbered as in a spreadsheet: the header is
row 1. No message quotes the content of a cell.
"""

from __future__ import annotations

import math
import os
import re
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import cast

from wardround.errors import DataError
from wardround.storage.table import Table, read_table, refuse_shortened

MANIFEST_COLUMNS = ("file", "patient_id", "label")
LABEL_KEYS = {"sopinstanceuid": "image", "seriesinstanceuid": "series", "seriesuid": "series", "patientid": "patient"}
LABEL_COLUMNS = (
    "SOPInstanceUID, SeriesInstanceUID or PatientID, then label, and optionally x,y or coordX,coordY,coordZ, and "
    "diameter_mm"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ManifestRow:
    """One line of manifest.csv. `label` is "" where the cell is empty."""

    row: int
    path: Path = field(repr=False)  # relative to the folder, checked to stay in it
    patient_id: str = field(repr=False)
    site: str | None
    label: str


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelRow:
    """One line of labels.csv: the identifier, the label, and optionally the position of the finding."""

    row: int
    subject: str = field(repr=False)
    label: str
    xy: tuple[float, float] | None = None  # pixels
    frame: int | None = None  # counted from 0
    point_mm: tuple[float, float, float] | None = None
    diameter_mm: float | None = None  # of the lesion


@dataclass(frozen=True, kw_only=True)
class LabelTable:
    """The rows of labels.csv, and the kind of identifier they use (image, series or patient)."""

    subject_kind: str
    rows: tuple[LabelRow, ...]

    @property
    def has_points(self) -> bool:
        """Whether any row gives a position."""
        return any(row.xy or row.point_mm for row in self.rows)


def read_manifest(path: Path) -> list[ManifestRow]:
    """Read `manifest.csv` (`file, patient_id, label`, optionally `site`; further columns are ignored).

    Raises:
        DataError: A column is missing, a cell is empty, or a file is missing or lies outside the folder.
    """
    table = read_table(path)
    columns = table.columns
    missing = [name for name in MANIFEST_COLUMNS if name not in columns]
    if missing:
        raise DataError(f"{path}: column {missing[0]} is missing; the columns are file, patient_id, label and site")
    root = path.parent.resolve()
    rows = []
    for row, cells in table.rows:
        for name in ("file", "patient_id", *(("site",) if "site" in columns else ())):
            if not cells[name]:
                raise DataError(f"{path}: row {row}: {name} is empty")
        refuse_shortened(cells["patient_id"], f"{path}: row {row}: patient_id")
        inside = path_inside(root, cells["file"], f"{path}: row {row}: file")
        site = cells["site"] if "site" in columns else None
        rows.append(ManifestRow(row=row, path=inside, patient_id=cells["patient_id"], site=site, label=cells["label"]))
    if not rows:
        raise DataError(f"{path}: has a header but no rows")
    return rows


def path_inside(root: Path, text: str, place: str) -> Path:
    """Return the relative path of an existing file inside `root` (resolved).

    Raises:
        DataError: The file is missing or lies outside `root`.
    """
    relative = PurePosixPath(text.replace("\\", "/"))
    if relative.is_absolute() or ".." in relative.parts or re.match(r"[A-Za-z]:", text) or "\0" in text:
        raise DataError(f"{place}: the path leaves the data folder; give paths relative to it")
    relative = _as_on_disk(root, relative)
    full = root / relative
    try:
        resolved = full.resolve(strict=True)
    except OSError:
        raise DataError(f"{place}: no such file; check the name, upper and lower case included") from None
    if not resolved.is_relative_to(root):
        raise DataError(f"{place}: a link that leads out of the data folder; put the file itself there")
    if not resolved.is_file():
        raise DataError(f"{place}: is not a file")
    return Path(relative)


def _as_on_disk(root: Path, relative: PurePosixPath) -> PurePosixPath:
    """Return the path in the spelling of the disk: letters with accents have two, composed and decomposed."""
    for form in ("NFC", "NFD"):
        other = PurePosixPath(unicodedata.normalize(form, str(relative)))
        if os.path.lexists(root / other):
            return other
    return relative


def read_label_table(path: Path) -> LabelTable:
    """Read `labels.csv`: one identifier column, `label`, and optionally the position of the finding.

    Raises:
        DataError: The columns are not a known combination, an identifier is empty, or a coordinate is not a number.
    """
    table = read_table(path)
    if "label" not in table.columns:
        raise DataError(f"{path}: needs the columns {LABEL_COLUMNS}")
    return _label_table(path, table)


def read_points(path: Path) -> LabelTable:
    """Read a table of positions, for images that a model is asked about: like `labels.csv`, with or without `label`.

    Raises:
        DataError: As `read_label_table`, and if no row has a position.
    """
    points = _label_table(path, read_table(path))
    if not points.has_points:
        raise DataError(f"{path}: has no position; needs x,y or coordX,coordY,coordZ beside the identifier")
    return points


def _label_table(path: Path, table: Table) -> LabelTable:
    columns = table.columns
    key = next((name for name in LABEL_KEYS if name in columns), None)
    if key is None:
        raise DataError(f"{path}: needs the columns {LABEL_COLUMNS}")
    pixel, world = {"x", "y"} & columns, {"coordx", "coordy", "coordz"} & columns
    if pixel and (len(pixel) < 2 or LABEL_KEYS[key] != "image"):
        raise DataError(f"{path}: x and y go together, with SOPInstanceUID")
    if world and (len(world) < 3 or LABEL_KEYS[key] != "series"):
        raise DataError(f"{path}: coordX, coordY and coordZ go together, with SeriesInstanceUID")
    rows = []
    for row, cells in table.rows:
        if not cells[key]:
            raise DataError(f"{path}: row {row}: the identifier is empty")
        place = f"{path}: row {row}"
        refuse_shortened(cells[key], f"{place}: the identifier")
        xy = _numbers(cells, ("x", "y"), place) if pixel else None
        point_mm = _numbers(cells, ("coordx", "coordy", "coordz"), place) if world else None
        frame = _numbers(cells, ("frame",), place) if "frame" in columns else None
        if frame is not None and (frame[0] < 1 or frame[0] != int(frame[0])):
            raise DataError(f"{place}: frame must be a whole number counted from 1")
        diameter_mm = _numbers(cells, ("diameter_mm",), place) if "diameter_mm" in columns else None
        rows.append(
            LabelRow(
                row=row,
                subject=cells[key],
                label=cells.get("label", ""),
                xy=cast(tuple[float, float] | None, xy),
                frame=int(frame[0]) - 1 if frame else None,
                point_mm=cast(tuple[float, float, float] | None, point_mm),
                diameter_mm=diameter_mm[0] if diameter_mm else None,
            )
        )
    if not rows:
        raise DataError(f"{path}: has a header but no rows")
    return LabelTable(subject_kind=LABEL_KEYS[key], rows=tuple(rows))


def _numbers(cells: dict[str, str], names: tuple[str, ...], place: str) -> tuple[float, ...] | None:
    """Return the cells as finite numbers; None if all are empty."""
    if not any(cells[name] for name in names):
        return None
    values = []
    for name in names:
        try:
            value = float(cells[name])
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise DataError(f"{place}: {name} is not a number (use a point for decimals)")
        values.append(value)
    return tuple(values)


# Tables of public collections, by columns that only they have; what they are, and their section in docs/data.md.
KNOWN_TABLES = (
    ({"seriesuid", "coordx", "coordy", "coordz"}, "a list of nodules as LUNA16 has it", "LUNA16"),
    ({"patientid", "x", "y", "width", "height", "target"}, "the table of boxes of RSNA's pneumonia challenge", "RSNA"),
    ({"image index", "finding labels", "patient id"}, "the table of NIH's ChestX-ray14", "NIH ChestX-ray14"),
)


def refuse_known_tables(folder: Path) -> None:
    """Raise `DataError` if a table at the top of the folder is one of a public collection, with the way to go.

    Tables that cannot be read are passed over: nothing else depends on them.
    """
    for path in sorted(folder.glob("*.csv")):
        try:
            columns = read_table(path).columns
        except DataError:
            continue
        for own, what, section in KNOWN_TABLES:
            if own <= columns:
                raise DataError(
                    f"{path}: is {what}, which is not read as it is; docs/data.md, section {section!r}, shows how to "
                    f"make manifest.csv or labels.csv of it"
                )
