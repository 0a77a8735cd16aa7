"""The one reader of tables that people write, CSV from a spreadsheet, an editor or a script; and cells for theirs.

Comma, semicolon, tab or bar; UTF-8 with or without a byte order mark; empty rows anywhere. Rows are numbered as a
spreadsheet shows them. No message quotes a cell, which may hold a patient's name.
"""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from wardround.errors import DataError
from wardround.storage.disk_errors import cause
from wardround.storage.text_file import NotTextError, read_text

SEPARATORS = ",;\t|"
LONGEST_CELL = 100_000  # characters
SHORTENED = re.compile(r"[+-]?\d+([.,]\d+)?[eE]\+?\d+")  # how a spreadsheet writes a long number
ZIP_START = b"PK\3\4"  # a workbook is a ZIP file


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table: the header's names as written and in lower case, and each row's number and cells by name.

    Cells are found by the name in lower case.
    """

    path: Path
    header: tuple[str, ...]
    columns: frozenset[str]
    rows: tuple[tuple[int, dict[str, str]], ...]


def read_table(path: Path) -> Table:
    """Read a table with one header row. Cells are stripped and in Unicode's composed form (NFC).

    Raises:
        DataError: The file cannot be read, is not a table, has two columns of one name, or a row that is too short.
    """
    lines = _rows(path, _text(path))
    header = next((line for line in lines if any(cell.strip() for cell in line[1])), None)
    if header is None:
        raise DataError(f"{path}: is empty; the first row names the columns")
    names = [_clean(name).lower() for name in header[1]]
    if len({name for name in names if name}) < sum(bool(name) for name in names):
        raise DataError(f"{path}: two columns have the same name")
    rows = []
    for number, line in lines:
        if number <= header[0] or not any(cell.strip() for cell in line):
            continue
        if len(line) < len(names):
            raise DataError(f"{path}: row {number}: has {len(line)} cells, the header has {len(names)}")
        rows.append((number, dict(zip(names, map(_clean, line), strict=False))))
    written = tuple(_clean(name) for name in header[1] if _clean(name))
    return Table(path=path, header=written, columns=frozenset(name for name in names if name), rows=tuple(rows))


def refuse_shortened(text: str, place: str) -> None:
    """Raise `DataError` if an identifier looks like a number that a spreadsheet has shortened, such as 1.0E+17."""
    if SHORTENED.fullmatch(text):
        raise DataError(
            f"{place}: looks like a number that a spreadsheet has shortened; format the column as text, and export the "
            "table again from where it came"
        )


def spellings_of_number(text: str) -> set[str]:
    """Return what an identifier may have been before a spreadsheet took it for a number: with zeros in front.

    Empty unless the text is a whole number, perhaps with ".0".
    """
    digits = text.removesuffix(".0")
    if not digits.isascii() or not digits.isdigit():
        return set()
    padded = {digits.zfill(length) for length in range(len(digits), 21)}
    return (padded | {digits.lstrip("0") or "0"}) - {text}


def same_text(text: str) -> str:
    """Return a text in the form in which names are compared: composed, without outer spaces, ignoring case."""
    return unicodedata.normalize("NFC", text).strip().casefold()


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            if file.read(4) == ZIP_START:
                raise DataError(f"{path}: is a spreadsheet, not text; save it as 'CSV UTF-8'")
        return read_text(path)
    except NotTextError as error:
        raise DataError(f"{path}: {error} (in a spreadsheet program: 'CSV UTF-8')") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {cause(error)}") from None


def _rows(path: Path, text: str) -> list[tuple[int, list[str]]]:
    """Return the number and the cells of every row."""
    begin, separator = 0, ""
    first = text.split("\n", 1)[0].strip()
    if first.lower().startswith("sep=") and len(first) == 5:  # how Excel names the separator
        begin, separator = 1, first[4]
    before = csv.field_size_limit(LONGEST_CELL)
    number = 0
    try:
        lines = [line for line in io.StringIO(text, newline="") if line.strip()][begin : begin + 1]
        separator = separator or max(SEPARATORS, key=_unquoted(lines[0] if lines else "").count)
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        rows = []
        for number, cells in enumerate(reader, start=1):
            if number > begin:
                rows.append((number, cells))
        return rows
    except csv.Error as error:
        why = f"a cell is longer than {LONGEST_CELL} characters" if "field larger" in str(error) else "is not valid CSV"
        raise DataError(f"{path}: row {number + 1}: {why} (a quote left open?)") from None
    finally:
        csv.field_size_limit(before)


def _unquoted(line: str) -> str:
    return re.sub(r'"[^"]*"', "", line)


def _clean(cell: str) -> str:
    return unicodedata.normalize("NFC", cell).strip("\ufeff \t\r\n\u00a0\0")


def spreadsheet_cell(value: object) -> str:
    """Return the cell of a CSV file that people open: None as an empty one, and no text that is taken for a formula."""
    text = "" if value is None else str(value)
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") and not _is_number(text) else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
