"""Maps a folder of records to sites: which files each site has, and which patients in them are its own.

The layout is recognised by the top level of the folder (`docs/records.md` shows examples):

    a table of measurements, patients.*, outcomes.*    long tables; a column `site` names the sites
    tables with one row for each patient               wide tables; a column `site`, or a file a site
    *.ndjson, or *.json with FHIR resources            FHIR R4
    folders of any of these                            a site each
"""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from wardround.errors import DataError
from wardround.sources.records.study import RecordsData
from wardround.sources.records.vocabulary import load_vocabulary
from wardround.storage.disk_errors import cause
from wardround.storage.table import same_text
from wardround_client.sources.records.events import UNKNOWN, Events, Names
from wardround_client.sources.records.fhir.files import is_fhir
from wardround_client.sources.records.fhir.observations import observed
from wardround_client.sources.records.fhir.stays import stay_rows
from wardround_client.sources.records.quality.counts import Counts
from wardround_client.sources.records.site_names import checked_name, names_of_files, plain_name
from wardround_client.sources.records.stays import NO_LABEL, Stays, stays_from
from wardround_client.sources.records.tables.long_table import Owners, columns_of, is_long, long_events
from wardround_client.sources.records.tables.outcomes import with_horizon
from wardround_client.sources.records.tables.patients import PATIENT, read_patients
from wardround_client.sources.records.tables.reader import BLOCK_BYTES, TableFile, open_table
from wardround_client.sources.records.tables.stay_table import read_stays
from wardround_client.sources.registry import Progress

TABLES = (".csv", ".tsv", ".data", ".parquet", ".csv.gz", ".tsv.gz", ".data.gz")
FHIR = (".ndjson", ".ndjson.gz", ".json", ".json.gz")
PARTED = ("events", "events.parquet")  # folders that hold one long table in parts, as data frames are often written
PATIENTS, OUTCOMES = "patients", "outcomes"
LEAST_VARIABLES = 3  # columns of the vocabulary in a wide table
ONE_ROW_ONE_PATIENT = "each row is treated as a different patient"
SPLIT_BY_PATIENT = "one pool, split over the sites by a hash of the patient"


@dataclass(frozen=True, kw_only=True)
class RecordsSite:
    """The records of one site on disk."""

    name: str
    root: Path
    events: tuple[TableFile, ...] = ()  # long tables
    patients: TableFile | None = None  # one row a patient; of a wide layout: everything
    outcomes: TableFile | None = None
    wide: bool = False
    fhir: tuple[Path, ...] = ()
    chosen: frozenset[str] = field(default=frozenset(), repr=False)  # this site's patients
    others: frozenset[str] = field(default=frozenset(), repr=False)  # patients of other sites in the same files
    first: bool = True  # the first of the sites that share files; it counts the rows that belong to no patient
    skipped: int = 0  # other files in the folder
    assumptions: tuple[str, ...] = ()

    @property
    def patients_are_assumed(self) -> bool:
        """Whether the data do not state which rows belong to the same patient."""
        return ONE_ROW_ONE_PATIENT in self.assumptions

    @property
    def files(self) -> int:
        """The number of files that are read."""
        return len(self.events) + len(self.fhir) + (self.patients is not None) + (self.outcomes is not None)


def discover(
    folder: Path, data: RecordsData, sites: int | None = None, *, every_label: bool = True
) -> list[RecordsSite]:
    """Return the sites found in `folder`, sorted by name.

    Args:
        folder: The data folder.
        data: The study's data section.
        sites: Over how many sites to split patients whose site is not named, by a hash of the patient.
        every_label: Whether both labels of the study must occur.

    Raises:
        DataError: The data cannot be right (one line): no records, a table without a needed column, a patient at two
            sites, only one outcome, or more sites than patients.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    if sites is not None and sites < 1:
        raise DataError("--sites: must be at least 1")
    try:
        found = _find(folder.resolve(), data, sites)
    except OSError as error:  # the path may hold a name
        raise DataError(f"{folder}: something in it cannot be read: {cause(error)}") from None
    _refuse_wrong_sites(folder, found, data, every_label)
    return sorted((site for site, _ in found), key=lambda site: site.name)


def stays_of(site: RecordsSite, data: RecordsData, names: Names | None, counts: Counts) -> Stays:
    """Return the patients of a site."""
    return _read(site, data, names, counts, site.chosen, site.others if site.first else None)[0]


def measurements_of(
    site: RecordsSite, owners: Owners, stays: Stays, names: Names, counts: Counts, progress: Progress | None
) -> Iterator[Events]:
    """Yield the measurements of a site's patients, batch by batch. A wide table has none beside the patients."""
    if site.fhir:
        yield from observed(site.fhir, owners, stays, names, counts)
    done, total = 0, sum(_batches(table) for table in site.events)
    for table in site.events:
        for events in long_events(table, owners, stays, names, counts):
            yield events
            done += 1
            if progress is not None:
                progress(done, max(done, total))


def _read(
    site: RecordsSite,
    data: RecordsData,
    names: Names | None,
    counts: Counts,
    chosen: frozenset[str] | None = None,
    others: frozenset[str] | None = None,
) -> tuple[Stays, list[str] | None]:
    """Return the patients of a site, or of all sites that share its files, and each one's site if the data name it."""
    if not site.fhir:
        return read_stays(
            site.patients, site.outcomes, data, names, counts, wide=site.wide, chosen=chosen, others=others
        )
    of_files = counts if others is not None else Counts()
    rows = stay_rows(site.fhir, data, names, of_files)
    ends = rows if site.outcomes is None else read_patients(site.outcomes, data, None, of_files)
    if not ends.has_outcome:
        raise DataError(
            f"{site.root}: the study's outcome, {data.outcome}, is not in the FHIR export (a code of Condition, or "
            "in_hospital_death); give a table outcomes.csv with patient_id (the id of Patient) beside it"
        )
    return stays_from(rows, ends, chosen=chosen, others=others, counts=counts)


def _whole(pool: RecordsSite, data: RecordsData) -> tuple[RecordsSite, Stays]:
    stays, named = _read(pool, data, None, Counts())
    if len(set(named or ())) > 1:
        raise DataError(f"{pool.root}: the column site names several sites inside the folder of one site")
    return replace(pool, chosen=frozenset(stays.ids)), stays


def _find(root: Path, data: RecordsData, sites: int | None) -> list[tuple[RecordsSite, Stays]]:
    pools = at_top(root, data)
    if pools:
        if len(pools) == 1:
            return _divided(pools[0], data, sites)
        found = [_whole(pool, data) for pool in pools]
    else:
        inner = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
        found = []
        for place in inner:
            own = at_top(place, data)
            if len(own) > 1:
                raise DataError(f"{place}: holds several tables with one row a patient; give each site one")
            found += [_whole(replace(pool, name=checked_name(place.name, str(place))), data) for pool in own]
        if not found:
            raise DataError(
                f"{root}: no records found; give a table of measurements with patients.csv, tables with one row a "
                "patient, or FHIR (docs/records.md shows examples)"
            )
    if sites is not None and sites != len(found):
        raise DataError(f"{root}: has {len(found)} sites, but --sites is {sites}; leave --sites out")
    return found


def at_top(root: Path, data: RecordsData) -> list[RecordsSite]:
    """Return the records at the top of a folder: one pool, or a wide table for each site."""
    tables, fhir, skipped = _files(root)
    opened = [(path, open_table(path)) for path in tables]
    long = tuple(table for _, table in opened if is_long(table))
    for table in long:
        columns_of(table)  # raises an error if one is missing
    named = {role: [table for path, table in opened if _stem(path) == role] for role in (PATIENTS, OUTCOMES)}
    for role, found in named.items():
        if len(found) > 1:
            raise DataError(f"{root}: more than one table {role}; leave one")
    patients, outcomes = (named[role][0] if named[role] else None for role in (PATIENTS, OUTCOMES))
    used = {table.path for table in (*long, patients, outcomes) if table is not None}
    if long:
        return [
            RecordsSite(
                name=plain_name(root.name), root=root, events=long, patients=patients, outcomes=outcomes,
                skipped=skipped + len(opened) - len(used) + len(fhir),
            )
        ]  # fmt: skip
    names = Names(load_vocabulary(data.vocabulary))
    wide = [table for _, table in opened if _is_wide(table, data, names) and table is not outcomes]
    if fhir:
        return [
            RecordsSite(
                name=plain_name(root.name), root=root, fhir=tuple(fhir), outcomes=outcomes,
                skipped=skipped + len(opened) - (outcomes is not None),
            )
        ]  # fmt: skip
    if not wide:
        return []
    labels = names_of_files([table.path for table in wide])
    return [
        RecordsSite(
            name=checked_name(label, str(root)) if len(wide) > 1 else plain_name(root.name),
            root=root,
            patients=table,
            outcomes=outcomes if same_text(data.outcome) not in table.columns else None,
            wide=True,
            skipped=skipped if index == 0 else 0,
            assumptions=() if PATIENT in table.columns else (ONE_ROW_ONE_PATIENT,),
        )
        for index, (label, table) in enumerate(zip(labels, wide, strict=True))
    ]


def _files(root: Path) -> tuple[list[Path], list[Path], int]:
    """Return the tables and the FHIR files at the top of a folder, and the number of other files."""
    tables, fhir, skipped = [], [], 0
    parts = [part for name in PARTED if (root / name).is_dir() for part in (root / name).iterdir()]
    for path in sorted([*root.iterdir(), *parts]):
        if _is_circle(path):
            raise DataError(f"{root}: holds a link that leads back to itself; put the file itself there")
        if path.is_symlink() and not path.resolve().is_relative_to(root):
            raise DataError(f"{root}: holds a link that leads out of it; put the files themselves there")
        if not path.is_file():
            continue
        name = path.name.lower()
        if name.startswith("."):
            skipped += 1
        elif name.endswith(TABLES):
            tables.append(path)
        elif name.endswith(FHIR) and is_fhir(path):
            fhir.append(path)
        else:
            skipped += 1
    return tables, fhir, skipped


def _is_circle(path: Path) -> bool:
    """Whether a link leads to itself. Some versions of Python raise no OSError when such a path is resolved."""
    try:
        path.stat()
    except OSError as error:
        return error.errno == errno.ELOOP
    return False


def _is_wide(table: TableFile, data: RecordsData, names: Names) -> bool:
    known = sum(names.find(column)[0] != UNKNOWN for column in table.columns)
    return known >= min(LEAST_VARIABLES, len(names.vocabulary.variables)) and not is_long(table)


def _divided(pool: RecordsSite, data: RecordsData, sites: int | None) -> list[tuple[RecordsSite, Stays]]:
    """Return the sites of a pool: those that its column `site` names, or `sites` parts by a hash of the patient."""
    stays, named = _read(pool, data, None, Counts())
    everyone = frozenset(stays.ids)
    if named is not None:
        if sites is not None and sites != len(set(named)):
            raise DataError(f"{pool.root}: names {len(set(named))} sites, but --sites is {sites}; leave --sites out")
        groups = {
            checked_name(name, f"{pool.root}: column site"): [index for index, own in enumerate(named) if own == name]
            for name in sorted(set(named))
        }
    elif sites is None or sites == 1:
        return [(replace(pool, chosen=everyone), stays)]
    else:
        if sites > len(everyone):
            raise DataError(f"{pool.root}: {sites} sites need at least {sites} patients, but there are {len(everyone)}")
        order = sorted(range(len(stays)), key=lambda index: _hash(stays.ids[index]))
        width = len(str(sites))
        groups = {f"site-{number + 1:0{width}d}": order[number::sites] for number in range(sites)}
        pool = replace(pool, assumptions=(*pool.assumptions, SPLIT_BY_PATIENT))
    found = []
    for number, (name, places) in enumerate(groups.items()):
        own = frozenset(stays.ids[index] for index in places)
        site = replace(
            pool, name=name, chosen=own, others=everyone - own, first=number == 0,
            skipped=pool.skipped if number == 0 else 0,
        )  # fmt: skip
        found.append((site, _of(stays, np.array(sorted(places), dtype=np.int64))))
    return found


def _of(stays: Stays, places: np.ndarray) -> Stays:
    """Return some of the patients, without their measurements."""
    return Stays(
        ids=tuple(stays.ids[index] for index in places.tolist()),
        admission_s_P=stays.admission_s_P[places],
        zoned_P=stays.zoned_P[places],
        label_P=stays.label_P[places],
        outcome_s_P=stays.outcome_s_P[places],
        events=stays.events.where(np.zeros(len(stays.events), dtype=bool)),
    )


def _refuse_wrong_sites(
    folder: Path, found: Sequence[tuple[RecordsSite, Stays]], data: RecordsData, every_label: bool
) -> None:
    home: dict[str, str] = {}
    labels: set[int] = set()
    names = [site.name for site, _ in found]
    if len(set(names)) < len(names):
        raise DataError(f"{folder}: two sites have the same name; rename one of the files or folders")
    for site, stays in found:
        label_P, early_P, _ = with_horizon(stays.label_P, stays.outcome_s_P, data)
        labels |= set(np.unique(label_P if data.horizon_hours is None else label_P[~early_P]).tolist()) - {NO_LABEL}
        for patient in stays.ids:
            if home.setdefault(patient, site.name) != site.name:
                raise DataError(
                    f"{folder}: one patient is at two sites, {home[patient]} and {site.name}; a patient belongs to one"
                )
    if not labels:
        raise DataError(f"{folder}: no patient has an outcome of the study (column {data.outcome})")
    if every_label and len(labels) < 2:
        (only,) = labels
        raise DataError(
            f"{folder}: every outcome is {data.labels[only]}; training also needs patients with "
            f"{data.labels[1 - only]} (column {data.outcome}, above {data.outcome_above:g})"
        )


def _batches(table: TableFile) -> int:
    """Return about how many batches a table has, for a progress bar."""
    return 1 + table.path.stat().st_size * (6 if table.packed else 1) // BLOCK_BYTES


def _stem(path: Path) -> str:
    return path.name.lower().split(".", 1)[0]


def _hash(patient: str) -> str:
    return hashlib.sha256(f"{patient}\0".encode("utf-8", "surrogatepass")).hexdigest()
