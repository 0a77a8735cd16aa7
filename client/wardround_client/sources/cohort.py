"""A cohort: a site's prepared data as one array on disk, and a table with one line per row of the array.

The rows may have any shape and any plain dtype; the source that prepared them decides. Images are uint8, C x H x W. A
cohort folder contains

    values.npy    the rows, N x ...
    table.csv     one line per row: row, pseudonym, label, the source's own columns, values_sha256
    cohort.json   the seal, written last: shape, dtype, label names, patients with their hold-out ranks, hashes

Cohorts of schema 1, which held images only, can still be opened; `_seal_of_schema_1` lists what differs.

`cohort.json` is removed before the other two files change and written again afterwards, so a half-written cohort is
never opened. `.cohort.lock` is held during the change, so a reader gets either the old cohort or the new one. No file
here can name a patient: `pseudonym` is the only identifier of a patient that is stored.
"""

from __future__ import annotations

import csv
import hashlib
import hmac
import io
import json
import math
import os
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from wardround.errors import DataError
from wardround.storage.atomic import fsync, owner_only, write_file, write_synced
from wardround.storage.folders import make_folder
from wardround.storage.locks import locked_if_there, try_locked
from wardround_client.sources.row_file import RowFile

SCHEMA_VERSION = 2
VALUES_FILE, TABLE_FILE, SEAL_FILE = "values.npy", "table.csv", "cohort.json"
IMAGES_FILE = "images.npy"  # the values of schema 1
LOCK_FILE = ".cohort.lock"
COLUMNS_BEFORE, HASH_COLUMN = ("row", "pseudonym", "label"), "values_sha256"


class NoCohortError(DataError):
    """The folder contains no finished cohort."""


class Rows:
    """Selected rows of an array that stays on disk.

    A row is read when it is indexed, into newly allocated memory. Indexing works along the first axis, as for the array
    itself. The memory that a site uses therefore does not grow with the number of its rows.
    """

    def __init__(self, array: AnyRows, rows_N: np.ndarray) -> None:
        self._array: np.ndarray | RowFile = array._array if isinstance(array, Rows) else array
        self._rows_N: np.ndarray = array._rows_N[rows_N] if isinstance(array, Rows) else np.asarray(rows_N)

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self._rows_N), *self._array.shape[1:])

    @property
    def dtype(self) -> np.dtype:
        return self._array.dtype

    def __len__(self) -> int:
        return len(self._rows_N)

    def __getitem__(self, chosen: int | np.integer | slice | np.ndarray) -> np.ndarray:
        return np.array(self._array[self._rows_N[chosen]])

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[row] for row in range(len(self)))

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype)


AnyRows = np.ndarray | RowFile | Rows  # rows in memory or on disk, indexed alike


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """An opened cohort: N rows of P patients. Arrays are read-only; rows stay on disk until they are indexed."""

    values_N: AnyRows  # (N, ...), any dtype; of images uint8 (N, C, H, W), grey values 0..255
    labels_N: np.ndarray  # int16, index into label_names; -1: no label
    patient_N: np.ndarray  # int32, index into pseudonyms
    pseudonyms: tuple[str, ...]  # hex HMAC-SHA256(site key, PatientID + issuer), P of them
    holdout_rank_P: np.ndarray  # float64 in [0, 1); permanently held out when below study.evaluation.holdout
    label_names: tuple[str, ...]  # the study's data.labels
    key: str  # SHA-256 over the rows in their order and how they were prepared; labels are not in it
    prepared_by: str  # the preprocessing's version and settings
    extra: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # the source's own columns of the table, N each
    earlier_identity: bool = False  # prepared when the issuer was part of a patient's identity

    @property
    def patient_count(self) -> int:
        """The number of patients P."""
        return len(self.pseudonyms)


@dataclass(frozen=True, kw_only=True)
class CohortRow:
    """The table's entry for one row."""

    pseudonym: str
    label: int  # index into label_names; -1: no label
    extra: Mapping[str, str] = field(default_factory=dict)  # the source's own columns, the same in every row


def pseudonym(key: bytes, patient_id: str, issuer: str = "") -> str:
    """Return the patient's pseudonym: hex HMAC-SHA256 (RFC 2104) of the site's key over PatientID.

    The spaces that DICOM pads values with, and the Unicode form of letters, are ignored. `issuer` was part of a
    patient's identity in earlier versions; an optional field must not split a patient, who would then be protected
    half. The lengths are hashed as well, so that ("ab", "c") and ("a", "bc") differ.
    """
    parts = [
        unicodedata.normalize("NFC", text).strip(" \0").encode("utf-8", "surrogatepass")
        for text in (patient_id, issuer)
    ]
    message = b"patient" + b"".join(len(part).to_bytes(8, "big") + part for part in parts)
    return hmac.new(key, message, hashlib.sha256).hexdigest()


def holdout_rank(key: bytes, patient_pseudonym: str) -> float:
    """Return a number in [0, 1) that never changes for a patient: 53 bits of HMAC-SHA256 under the site's key."""
    digest = hmac.new(key, b"holdout" + patient_pseudonym.encode(), hashlib.sha256).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53


def values_sha256(row: np.ndarray) -> str:
    """Return the hex SHA-256 of one row's values with their shape, and with their dtype unless it is uint8."""
    kind = row.shape if row.dtype == np.uint8 else (row.shape, row.dtype.str)
    return hashlib.sha256(repr(kind).encode() + np.ascontiguousarray(row).tobytes()).hexdigest()


def cohort_key(row_hashes: Iterable[str], prepared_by: str) -> str:
    """Return the cohort's key: SHA-256 over `prepared_by` (version and settings) and the rows' hashes in order."""
    return hashlib.sha256("\n".join(["wardround cohort", prepared_by, *row_hashes]).encode()).hexdigest()


def write_cohort(
    folder: Path,
    rows: Sequence[CohortRow],
    values: Iterable[np.ndarray],
    *,
    row_shape: tuple[int, ...],
    label_names: tuple[str, ...],
    site_key: bytes,
    prepared_by: str = "",
    dtype: Any = np.uint8,
    earlier_identity: bool = False,
) -> str:
    """Write a cohort and seal it. Returns its key.

    Args:
        folder: The cohort folder, created if missing.
        rows: The table's entry for each row.
        values: Yields one array of `row_shape` and `dtype` for each row, in the order of `rows`. Only one is in memory
            at a time.
        row_shape: The shape of every row.
        label_names: The study's labels.
        site_key: The site's own secret, from which hold-out ranks are derived.
        prepared_by: The preprocessing's version and settings.
        dtype: The dtype of every row.
        earlier_identity: See `Cohort`.

    Raises:
        ValueError: The values of a row have a different shape or dtype, their number differs from the number of rows,
            or the rows have different extra columns.
    """
    make_folder(folder)
    new_values = folder / (VALUES_FILE + ".new")
    hashes = _write_values(new_values, len(rows), values, row_shape, np.dtype(dtype))
    table = table_bytes(rows, hashes, label_names)
    new_table = folder / (TABLE_FILE + ".new")
    write_synced(new_table, table)
    patients = dict.fromkeys(row.pseudonym for row in rows)
    key = cohort_key(hashes, prepared_by)
    seal = {
        "schema": SCHEMA_VERSION,
        "key": key,
        "prepared_by": prepared_by,
        "shape": [len(rows), *row_shape],
        "dtype": np.dtype(dtype).str,
        "labels": list(label_names),
        "earlier_identity": earlier_identity,
        "patients": [[name, holdout_rank(site_key, name)] for name in patients],
        "table_sha256": hashlib.sha256(table).hexdigest(),
    }
    with try_locked(folder / LOCK_FILE, timeout_s=math.inf):
        (folder / SEAL_FILE).unlink(missing_ok=True)
        fsync(folder)
        os.replace(new_values, folder / VALUES_FILE)
        os.replace(new_table, folder / TABLE_FILE)
        (folder / IMAGES_FILE).unlink(missing_ok=True)
        write_file(folder / SEAL_FILE, json.dumps(seal, indent=1).encode())
    return key


def open_cohort(folder: Path) -> Cohort:
    """Open a sealed cohort. Rows stay on disk until they are indexed.

    Raises:
        NoCohortError: The folder contains no finished cohort.
        DataError: The cohort cannot be read, or its files do not belong together.
    """
    try:
        with locked_if_there(folder / LOCK_FILE):
            seal = json.loads((folder / SEAL_FILE).read_bytes())
            old = seal.get("schema") == 1
            table = (folder / TABLE_FILE).read_bytes()
            values_N = RowFile(folder / (IMAGES_FILE if old else VALUES_FILE))
    except FileNotFoundError:
        raise NoCohortError(f"{folder}: no finished cohort here; run ingest (again)") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{folder}: the cohort cannot be read ({type(error).__name__}); run ingest again") from None
    seal = _seal_of_schema_1(seal) if old else seal
    if seal.get("schema") != SCHEMA_VERSION:
        raise DataError(f"{folder}/{SEAL_FILE}: schema is not {SCHEMA_VERSION}; run ingest again with this version")
    found = (hashlib.sha256(table).hexdigest(), list(values_N.shape), values_N.dtype.str)
    if found != (seal["table_sha256"], seal["shape"], seal["dtype"]):
        raise DataError(f"{folder}: table, values and seal do not belong together; run ingest again")
    pseudonyms = tuple(name for name, _ in seal["patients"])
    labels = tuple(seal["labels"])
    patient_index = {name: index for index, name in enumerate(pseudonyms)}
    label_index = {"": -1, **{name: index for index, name in enumerate(labels)}}
    lines = list(csv.DictReader(io.StringIO(table.decode(), newline="")))
    return Cohort(
        values_N=values_N,
        labels_N=_frozen([label_index[line["label"]] for line in lines], np.int16),
        patient_N=_frozen([patient_index[line["pseudonym"]] for line in lines], np.int32),
        pseudonyms=pseudonyms,
        holdout_rank_P=_frozen([rank for _, rank in seal["patients"]], np.float64),
        label_names=labels,
        key=seal["key"],
        prepared_by=seal["prepared_by"],
        # interned, because the cells of a column repeat: millions of rows then share a few texts
        extra={column: tuple(sys.intern(line[column]) for line in lines) for column in _extra_columns(lines)},
        earlier_identity=bool(seal.get("earlier_identity", False)),
    )


def row_hashes(folder: Path) -> list[str]:
    """Return the hash of each row's values (hex SHA-256), as the table of an opened cohort lists them."""
    with open(folder / TABLE_FILE, newline="", encoding="utf-8") as file:
        return [line[-1] for line in csv.reader(file)][1:]


def empty_cohort(row_shape: tuple[int, ...], label_names: tuple[str, ...], dtype: Any = np.uint8) -> Cohort:
    """Return a cohort without patients, for a site that has prepared no data or has no patients left."""
    return Cohort(
        values_N=_frozen(np.empty((0, *row_shape)), dtype),
        labels_N=_frozen([], np.int16),
        patient_N=_frozen([], np.int32),
        pseudonyms=(),
        holdout_rank_P=_frozen([], np.float64),
        label_names=label_names,
        key=cohort_key([], ""),
        prepared_by="",
    )


def remove_cohort(folder: Path) -> None:
    """Remove a cohort's files, starting with the seal."""
    with try_locked(folder / LOCK_FILE, timeout_s=math.inf):
        for name in (SEAL_FILE, VALUES_FILE, IMAGES_FILE, TABLE_FILE):
            (folder / name).unlink(missing_ok=True)
            fsync(folder)


def select_patients(cohort: Cohort, keep_P: np.ndarray) -> Cohort:
    """Return the cohort of the patients for whom `keep_P` is true.

    The key depends on the selection, and is unchanged if all patients are kept. Rows are not copied: the result reads
    them through `Rows`.

    Args:
        cohort: The cohort to select from.
        keep_P: One bool per patient.

    Raises:
        ValueError: `keep_P` is not one bool per patient.
    """
    keep_P = np.asarray(keep_P)
    if keep_P.dtype != np.bool_ or keep_P.shape != (cohort.patient_count,):
        raise ValueError(f"keep_P must be {cohort.patient_count} bools, one a patient")
    if keep_P.all():
        return cohort
    kept = np.flatnonzero(keep_P[cohort.patient_N])
    new_index_P = np.cumsum(keep_P) - 1
    values_N = Rows(cohort.values_N, kept)
    chosen = hashlib.sha256(kept.astype("<i8").tobytes()).hexdigest()
    return replace(
        cohort,
        values_N=values_N,
        labels_N=_frozen(cohort.labels_N[kept], np.int16),
        patient_N=_frozen(new_index_P[cohort.patient_N[kept]], np.int32),
        pseudonyms=tuple(name for name, keep in zip(cohort.pseudonyms, keep_P, strict=True) if keep),
        holdout_rank_P=_frozen(cohort.holdout_rank_P[keep_P], np.float64),
        extra={name: tuple(column[row] for row in kept) for name, column in cohort.extra.items()},
        key=hashlib.sha256(f"{cohort.key} {chosen}".encode()).hexdigest(),
    )


def table_bytes(rows: Sequence[CohortRow], hashes: Sequence[str], label_names: tuple[str, ...]) -> bytes:
    """Return the content of `table.csv`: one line per row, with the hash of its values.

    Raises:
        ValueError: The rows have different extra columns.
    """
    extra = tuple(rows[0].extra) if rows else ()
    if any(tuple(row.extra) != extra for row in rows):
        raise ValueError("the rows of a cohort have different extra columns")
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow((*COLUMNS_BEFORE, *extra, HASH_COLUMN))
    for index, (row, sha256) in enumerate(zip(rows, hashes, strict=True)):
        label = "" if row.label < 0 else label_names[row.label]
        writer.writerow((index, row.pseudonym, label, *row.extra.values(), sha256))
    return text.getvalue().encode()


def _extra_columns(lines: Sequence[Mapping[str, str]]) -> list[str]:
    """Return the names of the source's own columns, which lie between the label and the hash."""
    return list(lines[0])[len(COLUMNS_BEFORE) : -1] if lines else []


def _seal_of_schema_1(seal: Mapping[str, Any]) -> dict[str, Any]:
    """Return the seal of schema 1 as one of schema 2: its rows are images, uint8, in `IMAGES_FILE`."""
    return {**seal, "schema": 2, "earlier_identity": True, "shape": seal["shape_NCHW"], "dtype": np.dtype(np.uint8).str}


def _write_values(
    path: Path, count: int, values: Iterable[np.ndarray], row_shape: tuple[int, ...], dtype: np.dtype
) -> list[str]:
    """Stream the rows into an .npy file, and return the hash of each in order."""
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (count, *row_shape)}
    hashes: list[str] = []
    with open(path, "wb", opener=owner_only) as file:  # streamed, because the array may be larger than the memory
        np.lib.format.write_array_header_1_0(file, header)
        for row in values:
            if row.shape != row_shape or row.dtype != dtype:
                raise ValueError(f"row {len(hashes)} is {row.dtype} {row.shape}, not {dtype} {row_shape}")
            file.write(np.ascontiguousarray(row).data)
            hashes.append(values_sha256(row))
        if len(hashes) != count:
            raise ValueError(f"{count} rows in the table but {len(hashes)} rows of values")
        file.flush()
        os.fsync(file.fileno())
    return hashes


def _frozen(values: Any, dtype: Any) -> np.ndarray:
    array = np.array(values, dtype=dtype)
    array.flags.writeable = False
    return array
