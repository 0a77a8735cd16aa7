"""A read-only view of a cohort's values on disk that reads them row by row.

Reads use `os.pread` instead of a memory map. With a memory map, a page that cannot be read (a bad sector, a network
share that has gone away) kills the whole process with SIGBUS. Here a failed read raises `OSError`, so that the patient
whose row it is counts as zero and the round continues.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np

Index = int | np.integer | slice | np.ndarray  # along the first axis


class RowFile:
    """The read-only array of an .npy file.

    It is indexed along the first axis. Each access reads from disk into newly allocated memory.
    """

    def __init__(self, path: Path) -> None:
        """Open the file and check its header and size.

        Raises:
            OSError: The file cannot be read.
            ValueError: The file is not a complete .npy file of plain numbers in C order.
        """
        self._path = path
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            read_header = (
                np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            )
            self.shape, fortran_order, self.dtype = read_header(file)
            self._begin = file.tell()
            size = os.fstat(file.fileno()).st_size
            self._descriptor = os.dup(file.fileno())
        self._row_bytes = math.prod(self.shape[1:]) * self.dtype.itemsize
        if fortran_order or self.dtype.hasobject or not self.shape:
            raise ValueError("not an array of plain numbers in C order")
        if size != self._begin + len(self) * self._row_bytes:
            raise ValueError("the file's size differs from the size given in its header")

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def __reduce__(self) -> tuple[type[RowFile], tuple[Path]]:
        return RowFile, (self._path,)  # a file descriptor cannot be pickled, so another process reopens the file

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, chosen: Index | tuple[Any, ...]) -> np.ndarray:
        """Return one row for an integer, otherwise an array of n rows.

        The rest of a tuple applies to each row.

        Raises:
            OSError: A row cannot be read.
        """
        if isinstance(chosen, tuple):
            first, *rest = chosen
            return self[first][tuple(rest)] if isinstance(first, (int, np.integer)) else self[first][:, *rest]
        rows = np.arange(len(self))[chosen]
        out = np.empty((rows.size, *self.shape[1:]), self.dtype)
        for place, row in enumerate(rows.ravel().tolist()):
            out[place] = self._row(row)
        return out.reshape((*rows.shape, *self.shape[1:]))

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype)

    def _row(self, row: int) -> np.ndarray:
        content = os.pread(self._descriptor, self._row_bytes, self._begin + row * self._row_bytes)
        if len(content) != self._row_bytes:
            raise OSError(f"row {row} of the prepared data is cut short")
        return np.frombuffer(content, self.dtype).reshape(self.shape[1:])
