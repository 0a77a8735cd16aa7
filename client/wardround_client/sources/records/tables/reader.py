"""Reads a table of any length in batches of some megabytes: CSV (plain or gzip) and Parquet, through pyarrow.

Memory does not grow with the file, nor with what a few packed bytes of it stand for. A row of CSV with more or fewer
cells than the header is counted and passed over; nothing of a row is quoted in a message, as it may name a patient.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pa_parquet

from wardround.errors import DataError
from wardround.storage.disk_errors import cause
from wardround.storage.text_file import path_text

if TYPE_CHECKING:
    from typing_extensions import Buffer

BLOCK_BYTES = 4 * 2**20  # of text; also the longest row
ROWS_OF_PARQUET = 131_072
STEP_ROWS = 256  # of Parquet, read at once; joined up to `ROWS_OF_PARQUET` or `BATCH_BYTES`
BATCH_BYTES = 64 * 2**20  # of Parquet, unpacked
START_BYTES = 65_536  # the header has to end within them
SEPARATORS = ",;\t|"
GZIP, PARQUET, ZIP, ZSTD = b"\x1f\x8b", b"PAR1", b"PK\3\4", b"\x28\xb5\x2f\xfd"
UTF_16 = (b"\xff\xfe", b"\xfe\xff")

Columns = Mapping[str, pa.Array]


@dataclass(frozen=True, kw_only=True)
class TableFile:
    """A table whose header has been read.

    Attributes:
        path: The file.
        columns: The names in lower case, in the order of the file.
        separator: Of CSV; "" for Parquet.
    """

    path: Path
    columns: tuple[str, ...]
    separator: str = ""
    quoted: bool = False  # whether quotes enclose cells of this CSV
    lines_before: int = 0  # up to and including the header
    packed: bool = False  # CSV in gzip


class RowCount:
    """Counts the rows of a table, while it is read: all, and those that do not fit the header."""

    def __init__(self) -> None:
        self.rows = 0
        self.unreadable = 0

    def skip(self, row: pa_csv.InvalidRow) -> str:
        """Count a row that does not fit the header, or the lines that an open quote joined; pyarrow calls this."""
        self.unreadable += 1 + row.text.strip("\n").count("\n")
        return "skip"


def open_table(path: Path) -> TableFile:
    """Read the header of a table.

    Raises:
        DataError: The file cannot be read, is not a table, or two of its columns have the same name.
    """
    try:
        with open(path, "rb") as file:
            begin = file.read(4)
        if begin == PARQUET:
            return TableFile(path=path, columns=_names(path, pa_parquet.read_schema(path).names))
        if begin == ZIP:
            raise DataError(f"{_shown(path)}: is a spreadsheet or an archive, not a table; save it as 'CSV UTF-8'")
        if begin.startswith(ZSTD):
            raise DataError(f"{_shown(path)}: is packed with Zstandard; pack it with gzip, or not at all")
        packed = begin.startswith(GZIP)
        with pa.input_stream(str(path), compression="gzip" if packed else None) as stream:
            start = stream.read(START_BYTES)
    except (OSError, pa.ArrowException, EOFError) as error:
        raise _unreadable(path, error) from None
    if start.startswith(UTF_16):
        raise DataError(f"{_shown(path)}: is UTF-16 text; save it as UTF-8")
    return _csv_header(path, bytes(start), packed)


def batches(table: TableFile, wanted: Collection[str], count: RowCount) -> Iterator[Columns]:
    """Yield the wanted columns of the table, batch by batch. Cells of CSV are bytes, exactly as in the file.

    Args:
        table: The table.
        wanted: Names of columns in lower case; each must be in the table.
        count: Counts the rows, and those that do not fit the header.

    Raises:
        DataError: The file is damaged, or cannot be read at the moment.
    """
    source = _parquet_batches(table, wanted) if not table.separator else _csv_batches(table, wanted, count)
    try:
        for batch in source:
            count.rows += batch.num_rows
            yield dict(zip(wanted, batch.columns, strict=True))
    except (OSError, pa.ArrowException, EOFError) as error:
        raise _unreadable(table.path, error) from None
    count.rows += count.unreadable


@contextmanager
def converting(table: TableFile) -> Iterator[None]:
    """Turn what pyarrow cannot convert into one line; pyarrow's own text may quote the cell.

    Raises:
        DataError: A column has a type or a value that is no number, time or text.
    """
    try:
        yield
    except pa.ArrowException:
        raise DataError(
            f"{_shown(table.path)}: a column has a type or a value that cannot be read; save it as text"
        ) from None


class ValidText(io.RawIOBase):
    """A stream of bytes in which what is not UTF-8 is replaced by U+FFFD.

    pyarrow hands a row that does not fit the header to Python as text; a byte that is none would end the whole reading.
    """

    def __init__(self, stream: pa.NativeFile) -> None:
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._left = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer) -> int:
        """Fill the buffer, and return the number of bytes; 0 at the end."""
        target = memoryview(buffer).cast("B")
        while not len(self._left):
            block = self._stream.read(BLOCK_BYTES)
            plain = block.isascii() and not self._decoder.getstate()[0]
            text = block if plain else self._decoder.decode(block, final=not block).encode()
            if not block and not text:
                return 0
            self._left = memoryview(text)
        size = min(len(target), len(self._left))
        target[:size], self._left = self._left[:size], self._left[size:]
        return size


def _csv_batches(table: TableFile, wanted: Collection[str], count: RowCount) -> Iterator[pa.RecordBatch]:
    with pa.input_stream(str(table.path), compression="gzip" if table.packed else None) as stream:
        try:
            reader = pa_csv.open_csv(
                pa.PythonFile(io.BufferedReader(ValidText(stream), BLOCK_BYTES), mode="r"),
                read_options=pa_csv.ReadOptions(
                    column_names=list(table.columns), skip_rows=table.lines_before, block_size=BLOCK_BYTES
                ),
                parse_options=pa_csv.ParseOptions(
                    delimiter=table.separator,
                    quote_char='"' if table.quoted else False,
                    invalid_row_handler=count.skip,
                ),
                convert_options=pa_csv.ConvertOptions(
                    column_types=dict.fromkeys(table.columns, pa.binary()), include_columns=list(wanted)
                ),
            )
        except pa.ArrowInvalid as error:
            if "Empty CSV file" in str(error):
                return  # a header without rows
            raise
        with reader:
            yield from reader


def _parquet_batches(table: TableFile, wanted: Collection[str]) -> Iterator[pa.RecordBatch]:
    with pa_parquet.ParquetFile(table.path, pre_buffer=False) as file:
        written = dict(zip(table.columns, file.schema_arrow.names, strict=True))
        columns = [written[name] for name in wanted]
        for name in wanted:
            if pa.types.is_nested(file.schema_arrow.field(table.columns.index(name)).type):
                raise DataError(f"{_shown(table.path)}: column {name} holds lists or records; give each cell one value")
        for first in file.iter_batches(batch_size=1, columns=columns):  # one value may be repeated by a few bytes
            _size(_unpacked(first), table.path, STEP_ROWS)
            break
        parts: list[pa.RecordBatch] = []
        rows = size = 0
        for packed in file.iter_batches(batch_size=STEP_ROWS, columns=columns):
            part = _unpacked(packed.select(columns))
            more = _size(part, table.path)
            if parts and (rows + part.num_rows > ROWS_OF_PARQUET or size + more > BATCH_BYTES):
                yield pa.concat_batches(parts)
                parts, rows, size = [], 0, 0
            parts.append(part)
            rows, size = rows + part.num_rows, size + more
        if parts:
            yield pa.concat_batches(parts)


def _unpacked(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return a batch whose cells are stored one by one: a dictionary's size says nothing of what it becomes later."""
    columns = [one.dictionary_decode() if pa.types.is_dictionary(one.type) else one for one in batch.columns]
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)


def _size(batch: pa.RecordBatch, path: Path, times: int = 1) -> int:
    """Return the bytes of a batch. Raises `DataError` if so many of them are more than one batch may have."""
    size = int(batch.nbytes)
    if size * times > BATCH_BYTES:
        raise DataError(f"{_shown(path)}: a cell is too long; leave texts other than codes and values out")
    return size


def _csv_header(path: Path, start: bytes, packed: bool) -> TableFile:
    """Find the header, the separator, and whether cells are in quotes."""
    lines = start.decode("utf-8", "replace").removeprefix("\ufeff").splitlines()
    at = next((index for index, line in enumerate(lines) if line.strip()), None)
    if at is None:
        raise DataError(f"{_shown(path)}: is empty; the first row names the columns")
    separator = ""
    if lines[at].lower().startswith("sep=") and len(lines[at].strip()) == 5:  # how Excel names the separator
        separator, at = lines[at][4], at + 1
    if at >= len(lines) or "\0" in lines[at]:
        raise DataError(f"{_shown(path)}: is not a table; the first row names the columns")
    if at == len(lines) - 1 and len(start) == START_BYTES:
        raise DataError(f"{_shown(path)}: its first row is longer than {START_BYTES} bytes; is it a table?")
    header = lines[at]
    separator = separator or max(SEPARATORS, key=header.count)
    try:
        (cells,) = csv.reader(io.StringIO(header), delimiter=separator)
    except (csv.Error, ValueError):
        raise DataError(f"{_shown(path)}: its first row is not a header of a CSV file") from None
    cell = re.compile(rf'(^|{re.escape(separator)})"[^"]*"({re.escape(separator)}|$)')
    # A stray quote in a table without quoting is a character; taken for quoting, it would swallow the lines after it.
    quoted = 2 * sum(bool(cell.search(line)) for line in lines[at:]) > len(lines[at:])
    return TableFile(
        path=path,
        columns=_names(path, cells),
        separator=separator,
        quoted=quoted,
        lines_before=at + 1,
        packed=packed,
    )


def _names(path: Path, written: Collection[str]) -> tuple[str, ...]:
    names = [name.strip("\ufeff \t\r\n\u00a0").lower() or f"column {index}" for index, name in enumerate(written, 1)]
    if len(set(names)) < len(names):
        raise DataError(f"{_shown(path)}: two columns have the same name")
    return tuple(names)


def _unreadable(path: Path, error: Exception) -> DataError:
    if isinstance(error, OSError) and error.errno:
        return DataError(f"{_shown(path)}: cannot be read: {cause(error)}")
    if "straddling" in str(error):
        return DataError(f"{_shown(path)}: a row is longer than {BLOCK_BYTES / 1e6:.0f} MB; a quote left open?")
    if "out of sync" in str(error):
        return DataError(f"{_shown(path)}: a quote is left open; export the table again")
    return DataError(f"{_shown(path)}: is damaged or cut short; export the table again")


def _shown(path: Path) -> str:
    return path_text(path)
