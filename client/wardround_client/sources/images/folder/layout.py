"""Maps a data folder to sites: the files of each site, their patients and their labels.

The layout is recognised by the top level of the folder (`docs/data.md` shows examples):

    manifest.csv                      rows name files, patients, labels and perhaps sites
    folders named as the labels       one pool of pictures; one picture is taken as one patient
    DICOM files, perhaps labels.csv   one site
    folders of any of these           a site each

A pool without sites is split over `sites` by patient. This module only lists files: who they belong to is found out in
worker processes (`decoding/identify.py`), and `ingest` reads them.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from wardround.errors import DataError
from wardround.sources.images.study import ImageData
from wardround_client.sources.images.decoding.identify import patients_of_files
from wardround_client.sources.images.folder.class_folders import ClassFolders, are_splits, class_folders, label_index
from wardround_client.sources.images.folder.files import (
    DICOM,
    LABELS,
    MANIFEST,
    PICTURE,
    file_kind,
    list_files,
    subfolders,
)
from wardround_client.sources.images.folder.tables import (
    LabelTable,
    read_label_table,
    read_manifest,
    refuse_known_tables,
)

ONE_IMAGE_ONE_PATIENT = "each image is treated as a different patient"
SPLIT_BY_PATIENT = "one pool, split over the sites by a hash of the patient"
SITE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceFile:
    """One file of a site.

    `patient_id` is None if only the DICOM header can give it; `label` is -1 if no label is given.
    """

    path: Path = field(repr=False)  # relative to the source's root
    patient_id: str | None = field(default=None, repr=False)
    label: int = -1


@dataclass(frozen=True, kw_only=True)
class SiteSource:
    """The files of one site on disk."""

    name: str
    root: Path
    layout: str  # "manifest", "classes" or "dicom"
    files: tuple[SourceFile, ...] = field(repr=False)
    labels: LabelTable | None = field(default=None, repr=False)
    assumptions: tuple[str, ...] = ()
    left_out: int = 0  # rows or pictures whose label is not in the study
    skipped: int = 0  # files passed over by their name or folder
    broken_links: int = 0

    @property
    def patients_are_assumed(self) -> bool:
        """Whether the data do not state which pictures belong to the same patient."""
        return ONE_IMAGE_ONE_PATIENT in self.assumptions


def discover(folder: Path, data: ImageData, sites: int | None = None, *, every_label: bool = True) -> list[SiteSource]:
    """Return the sites found in `folder`, sorted by name.

    Args:
        folder: The data folder.
        data: The study's data section.
        sites: The number of sites over which to split a pool by patient. If the data name their sites, the number must
            match. With `sites=1` a folder of DICOM files is one site, however deep its folders are nested.
        every_label: Whether every label of the study must occur. One hospital of a federation may have no case of a
            rare class, if its other labels are all of the study; two labels it needs.

    Raises:
        DataError: The data cannot be right: an empty folder, an invalid table, a patient at two sites, only one class,
            or more sites than patients. The message is one line.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    if sites is not None and sites < 1:
        raise DataError("--sites: must be at least 1")
    try:
        found = _find(folder, data, sites, every_label)
    except OSError as error:
        # The failing path may contain a patient's name, so the message names only the data folder.
        raise DataError(f"{folder}: something in it cannot be read: {error.strerror}; check permissions") from None
    return sorted(found, key=lambda source: source.name)


def _find(folder: Path, data: ImageData, sites: int | None, every_label: bool) -> list[SiteSource]:
    root = folder.resolve()
    if not (root / MANIFEST).is_file() and not (root / LABELS).is_file():
        refuse_known_tables(root)
    if (root / MANIFEST).is_file():
        found = _from_manifest(root, data, sites)
    elif classes := class_folders(root, data):
        found = _split(_from_classes(root, classes), sites)
    elif _is_one_dicom_site(root, data, sites):
        found = _split(_from_dicom(root, data), sites)
    else:
        found = [_one_site(inner, data) for inner in subfolders(root)]
        if not found:
            raise DataError(f"{folder}: holds no images; {_layouts(data)}")
        if sites is not None and sites != len(found):
            raise DataError(
                f"{folder}: its {len(found)} folders are taken as {len(found)} sites, but --sites is {sites}; "
                f"leave --sites out, or put a manifest.csv or labels.csv at the top to make them one pool"
            )
    _refuse_shared_patients(folder, found)
    _refuse_missing_labels(folder, found, data, every_label)
    return found


def shared_patients(one: Iterable[SiteSource], other: Iterable[SiteSource]) -> int:
    """Return the number of patients in both: training and test data must not share any."""
    return len(set().union(*map(_patients, one)) & set().union(*map(_patients, other)))


def _one_site(folder: Path, data: ImageData) -> SiteSource:
    """Return a folder as one site, whatever its layout."""
    name = _site_name(folder.name, str(folder))
    if (folder / MANIFEST).is_file():
        found = _from_manifest(folder, data, None)
        if len(found) > 1:
            raise DataError(f"{folder / MANIFEST}: names several sites inside the folder of one site")
        return replace(found[0], name=name)
    if classes := class_folders(folder, data):
        return replace(_from_classes(folder, classes), name=name)
    return replace(_from_dicom(folder, data), name=name)


def _from_manifest(root: Path, data: ImageData, sites: int | None) -> list[SiteSource]:
    path = root / MANIFEST
    rows = read_manifest(path)
    home: dict[str, tuple[str | None, int]] = {}
    for row in rows:
        site, first = home.setdefault(row.patient_id, (row.site, row.row))
        if site != row.site:
            raise DataError(f"{path}: rows {first} and {row.row}: one patient at two sites; a patient belongs to one")
    names = sorted({row.site for row in rows if row.site is not None})
    of_sites: Sequence[str | None] = names or [None]
    groups: list[SiteSource] = []
    for name in of_sites:
        own = [row for row in rows if row.site == name]
        files = tuple(
            SourceFile(path=row.path, patient_id=row.patient_id, label=label)
            for row in own
            if (label := label_index(row.label, data)) is not None
        )
        place = f"{path}: row {own[0].row}: site"
        groups.append(
            SiteSource(
                name=_site_name(root.name if name is None else name, place, strict=name is not None),
                root=root,
                layout="manifest",
                files=files,
                left_out=len(own) - len(files),
            )
        )
    if not any(source.files for source in groups):
        raise DataError(f"{path}: no row has a label of the study ({', '.join(data.labels)}); see its data.labels")
    empty = [source.name for source in groups if not source.files]
    if empty:
        raise DataError(f"{path}: site {empty[0]} has no row with a label of the study ({', '.join(data.labels)})")
    if not names:
        return _split(groups[0], sites)
    if sites is not None and sites != len(names):
        raise DataError(f"{path}: names {len(names)} sites, but --sites is {sites}; leave --sites out")
    return groups


def _from_classes(root: Path, classes: ClassFolders) -> SiteSource:
    """Read folders named as labels. A picture's patient is the hash of its content; a DICOM file's is in its header."""
    files: list[SourceFile] = []
    pictures: list[Path] = []
    skipped = broken_links = 0
    for inner, label in classes.labelled:
        listing = list_files(inner)
        skipped, broken_links = skipped + listing.skipped, broken_links + listing.broken_links
        for path in listing.files:
            files.append(SourceFile(path=path.relative_to(root), label=label))
            if file_kind(path) == PICTURE:
                pictures.append(path)
    if not files:
        raise DataError(f"{root}: the folders named as the study's labels are empty")
    owners = dict(zip(pictures, patients_of_files(root, pictures), strict=True))
    named = (replace(file, patient_id=owners.get(root / file.path)) for file in files)
    return SiteSource(
        name=_site_name(root.name, "", strict=False),
        root=root,
        layout="classes",
        files=tuple(named),
        assumptions=((ONE_IMAGE_ONE_PATIENT,) if pictures else ()) + classes.notes,
        left_out=sum(len(list_files(other).files) for other in classes.others),
        skipped=skipped + classes.copied,
        broken_links=broken_links,
    )


def _from_dicom(root: Path, data: ImageData) -> SiteSource:
    listing = list_files(root)
    if not any(file_kind(path) == DICOM for path in listing.files):
        raise DataError(f"{root}: no image among its {len(listing.files)} files; {_layouts(data)}")
    table = read_label_table(root / LABELS) if (root / LABELS).is_file() else None
    if data.region == "marked" and (table is None or not table.has_points):
        raise DataError(
            f"{root / LABELS}: the study cuts around marked points (data.region), but no points are given: add "
            f"SOPInstanceUID,x,y,label or SeriesInstanceUID,coordX,coordY,coordZ,label"
        )
    labels = set() if table is None else {label_index(row.label, data) for row in table.rows} - {None, -1}
    if table is not None and not labels:
        raise DataError(f"{root / LABELS}: no row has a label of the study ({', '.join(data.labels)})")
    return SiteSource(
        name=_site_name(root.name, "", strict=False),
        root=root,
        layout="dicom",
        files=tuple(SourceFile(path=path.relative_to(root)) for path in listing.files),
        labels=table,
        skipped=listing.skipped,
        broken_links=listing.broken_links,
    )


def _split(pool: SiteSource, sites: int | None) -> list[SiteSource]:
    """Distribute a pool's patients over `sites` sites by the order of a hash: evenly, and the same way each time."""
    if sites is None or sites == 1:
        return [pool]
    owners = _owners(pool)
    patients = sorted(
        {owner for owner in owners if owner is not None},
        key=lambda patient: hashlib.sha256(f"{patient}\0".encode("utf-8", "surrogatepass")).hexdigest(),
    )
    if sites > len(patients):
        raise DataError(f"{pool.root}: {sites} sites need at least {sites} patients, but there are {len(patients)}")
    site_of = {patient: index % sites for index, patient in enumerate(patients)}
    # A file without a patient goes to the first site, so that a quality report lists it.
    places = [site_of.get(owner, 0) if owner is not None else 0 for owner in owners]
    width = len(str(sites))
    return [
        replace(
            pool,
            name=f"site-{index + 1:0{width}d}",
            files=tuple(file for file, place in zip(pool.files, places, strict=True) if place == index),
            assumptions=(*pool.assumptions, SPLIT_BY_PATIENT),
            left_out=pool.left_out if index == 0 else 0,
            skipped=pool.skipped if index == 0 else 0,
            broken_links=pool.broken_links if index == 0 else 0,
        )
        for index in range(sites)
    ]


def _owners(source: SiteSource) -> list[str | None]:
    """Return the patient of each file, from the source or else from the file's header."""
    unknown = [source.root / file.path for file in source.files if file.patient_id is None]
    read = dict(zip(unknown, patients_of_files(source.root, unknown), strict=True))
    return [read[source.root / file.path] if file.patient_id is None else file.patient_id for file in source.files]


def _patients(source: SiteSource) -> set[str]:
    return {owner for owner in _owners(source) if owner is not None}


def _is_one_dicom_site(root: Path, data: ImageData, sites: int | None) -> bool:
    """Whether the folder is one site of DICOM files.

    That is the case if labels.csv or a DICOM file is at the top, if the folders are the parts of a split (train, test),
    or if one site is requested and the subfolders do not look like sites.
    """
    if (root / LABELS).is_file() or any(file_kind(path) == DICOM for path in list_files(root, deep=False).files):
        return True
    inside = subfolders(root)
    if are_splits(inside):
        return True
    return sites == 1 and len(inside) > 1 and not any(_looks_like_site(inner, data) for inner in inside)


def _looks_like_site(folder: Path, data: ImageData) -> bool:
    return (folder / MANIFEST).is_file() or (folder / LABELS).is_file() or class_folders(folder, data) is not None


def _refuse_shared_patients(folder: Path, found: Sequence[SiteSource]) -> None:
    if len(found) < 2 or any(SPLIT_BY_PATIENT in source.assumptions for source in found):
        return
    home: dict[str, str] = {}
    for source in found:
        for patient in _patients(source):
            if home.setdefault(patient, source.name) != source.name:
                raise DataError(
                    f"{folder}: one patient is at two sites, {home[patient]} and {source.name}; "
                    f"a patient belongs to one"
                )


def _refuse_missing_labels(folder: Path, found: Sequence[SiteSource], data: ImageData, every_label: bool) -> None:
    """Raise `DataError` if labels are given, but not every label of the study: it would train without that class."""
    counts: Counter[int] = Counter()
    others = 0
    for source in found:
        counts.update(file.label for file in source.files if file.label >= 0)
        others += source.left_out
        if source.labels is not None:
            known = [label_index(row.label, data) for row in source.labels.rows]
            counts.update(label for label in known if label is not None and label >= 0)
            others += known.count(None)
    missing = [name for index, name in enumerate(data.labels) if not counts[index]]
    if not counts or not missing or (not every_label and len(counts) > 1 and not others):
        return
    if len(counts) == 1 and not others:
        raise DataError(
            f"{folder}: every label is {data.labels[next(iter(counts))]}; training also needs images of "
            f"{', '.join(missing)}"
        )
    spelt = f"; {others} files or rows have a label that is not in the study: compare the spelling" if others else ""
    raise DataError(f"{folder}: no image has the label {', '.join(missing)} of the study{spelt}")


def _site_name(text: str, place: str, *, strict: bool = True) -> str:
    """Return a name that is valid for a folder.

    If `strict`, an invalid name raises `DataError`; otherwise invalid characters become hyphens.
    """
    if SITE_NAME.fullmatch(text):
        return text
    if strict:
        raise DataError(f"{place}: a site's name has up to 63 letters, digits, dots, hyphens and underscores")
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")[:63] or "site"


def _layouts(data: ImageData) -> str:
    return f"provide a manifest.csv, folders named {' and '.join(data.labels)}, or DICOM files (see docs/data.md)"
