"""The identifiers of studies, series and objects: what a DICOM UID is, and a hospital's own list of them.

Errors quote the row of a list and never its content, because an accession number identifies a patient.
"""

from __future__ import annotations

import re
from pathlib import Path

from wardround.errors import DataError
from wardround.storage.table import read_table, refuse_shortened
from wardround.storage.text_file import path_text

UID = re.compile(r"[0-9]+(\.[0-9]+)*")
LONGEST_UID = 64  # PS3.5 9.1


def is_uid(text: object) -> bool:
    """Return whether a text is a DICOM UID (PS3.5 9.1), apart from its rule about leading zeros, which many break."""
    return isinstance(text, str) and len(text) <= LONGEST_UID and UID.fullmatch(text) is not None


def read_list(path: Path, column: str) -> tuple[tuple[int, str], ...]:
    """Read a table with one identifier for each row, in the column of that name.

    Raises:
        DataError: The table cannot be read or lacks the column, or an identifier was shortened by a spreadsheet.
    """
    table = read_table(path)
    name = column.lower() if column.lower() in table.columns else None
    if name is None:
        raise DataError(f"{path_text(path)}: needs a column {column}")
    rows = []
    for row, cells in table.rows:
        if not cells[name]:
            continue
        refuse_shortened(cells[name], f"{path_text(path)}: row {row}")
        if any(one in cells[name] for one in "\\*?") or (column == "StudyInstanceUID" and not is_uid(cells[name])):
            raise DataError(f"{path_text(path)}: row {row}: is not a valid {column}")
        rows.append((row, cells[name]))
    if not rows:
        raise DataError(f"{path_text(path)}: lists nothing")
    return tuple(rows)
