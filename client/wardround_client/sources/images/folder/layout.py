"""Maps a data folder to sites: the files of each site, their patients and their labels.

The layout is recognised by the top level of the folder (`docs/data.md` shows examples):

    manifest.csv                      rows name files, patients, labels and perhaps sites
    folders named as the labels       one pool of pictures; one picture is taken as one patient
    DICOM files, perhaps labels.csv   one site
    folders of any of these           a site each

A pool without sites is split over `sites` by patient. This module only lists files; `ingest` reads them.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from wardround.errors import DataError
from wardround.study.schema import DataSection
from wardround_client.sources.images.folder.files import DICOM, PICTURE, file_kind, list_files, subfolders
from wardround_client.sources.images.folder.tables import LabelTable, read_label_table, read_manifest

MANIFEST, LABELS = "manifest.csv", "labels.csv"
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
    issuer: str = field(default="", repr=False)
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
    ignored: int = 0  # files that are obviously not images, such as text files

    @property
    def assumes_one_image_one_patient(self) -> bool:
        """Whether the data do not state which pictures belong to the same patient."""
        return ONE_IMAGE_ONE_PATIENT in self.assumptions


def discover(folder: Path, data: DataSection, sites: int | None = None) -> list[SiteSource]:
    """Return the sites found in `folder`, sorted by name.

    Args:
        folder: The data folder.
        data: The study's data section.
        sites: The number of sites over which to split a pool by patient. If the data name their sites, the number must
            match. With `sites=1` a folder of DICOM files is one site, however deep its folders are nested.

    Raises:
        DataError: The data cannot be right: an empty folder, an invalid table, a patient at two sites, only one class,
            or more sites than patients. The message is one line.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    if sites is not None and sites < 1:
        raise DataError("--sites: must be at least 1")
    try:
        found = _find(folder, data, sites)
    except OSError as error:
        # The failing path may contain a patient's name, so the message names only the data folder.
        raise DataError(f"{folder}: something in it cannot be read: {error.strerror}; check permissions") from None
    return sorted(found, key=lambda source: source.name)


def _find(folder: Path, data: DataSection, sites: int | None) -> list[SiteSource]:
    root = folder.resolve()
    if (root / MANIFEST).is_file():
        found = _from_manifest(root, data, sites)
    elif _is_pool_of_classes(root, data):
        found = _split(_from_classes(root, data), sites)
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
    _refuse_one_class(folder, found, data)
    return found


def shared_patients(one: Iterable[SiteSource], other: Iterable[SiteSource]) -> int:
    """Return the number of patients in both, by PatientID and issuer: training and test data must not share any."""
    return len(set().union(*map(_patients, one)) & set().union(*map(_patients, other)))


def _one_site(folder: Path, data: DataSection) -> SiteSource:
    """Return a folder as one site, whatever its layout."""
    name = _site_name(folder.name, str(folder))
    if (folder / MANIFEST).is_file():
        found = _from_manifest(folder, data, None)
        if len(found) > 1:
            raise DataError(f"{folder / MANIFEST}: names several sites inside the folder of one site")
        return replace(found[0], name=name)
    if _is_pool_of_classes(folder, data):
        return replace(_from_classes(folder, data), name=name)
    return replace(_from_dicom(folder, data), name=name)


def _from_manifest(root: Path, data: DataSection, sites: int | None) -> list[SiteSource]:
    path = root / MANIFEST
    rows = read_manifest(path)
    known = {"": -1, **{label: index for index, label in enumerate(data.labels)}}
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
            SourceFile(path=row.path, patient_id=row.patient_id, label=known[row.label])
            for row in own
            if row.label in known
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


def _from_classes(root: Path, data: DataSection) -> SiteSource:
    """Read folders named as labels. A picture's patient is the hash of its content; a DICOM file's is in its header."""
    known = {label.casefold(): index for index, label in enumerate(data.labels)}
    files: list[SourceFile] = []
    assumed, left_out, ignored = False, 0, 0
    for inner in subfolders(root):
        paths, skipped = list_files(inner)
        ignored += skipped
        label = known.get(inner.name.casefold())
        if label is None:
            left_out += len(paths)
            continue
        for path in paths:
            patient_id, issuer = _patient_in_header(path)
            if patient_id is None:
                assumed = True
                patient_id = "picture " + _content_sha256(path)
            relative = path.relative_to(root)
            files.append(SourceFile(path=relative, patient_id=patient_id, issuer=issuer, label=label))
    if not files:
        raise DataError(f"{root}: the folders named as the study's labels ({', '.join(data.labels)}) are empty")
    return SiteSource(
        name=_site_name(root.name, "", strict=False),
        root=root,
        layout="classes",
        files=tuple(files),
        assumptions=(ONE_IMAGE_ONE_PATIENT,) if assumed else (),
        left_out=left_out,
        ignored=ignored,
    )


def _from_dicom(root: Path, data: DataSection) -> SiteSource:
    paths, ignored = list_files(root)
    if not any(file_kind(path) == DICOM for path in paths):
        raise DataError(f"{root}: no image among its {len(paths)} files; {_layouts(data)}")
    table = read_label_table(root / LABELS) if (root / LABELS).is_file() else None
    if data.region == "marked" and (table is None or not table.has_points):
        raise DataError(
            f"{root / LABELS}: the study cuts around marked points (data.region), but no points are given: add "
            f"SOPInstanceUID,x,y,label or SeriesInstanceUID,coordX,coordY,coordZ,label"
        )
    if table is not None and not any(row.label in data.labels for row in table.rows):
        raise DataError(f"{root / LABELS}: no row has a label of the study ({', '.join(data.labels)})")
    return SiteSource(
        name=_site_name(root.name, "", strict=False),
        root=root,
        layout="dicom",
        files=tuple(SourceFile(path=path.relative_to(root)) for path in paths),
        labels=table,
        ignored=ignored,
    )


def _split(pool: SiteSource, sites: int | None) -> list[SiteSource]:
    """Distribute a pool's patients over `sites` sites by the order of a hash: evenly, and the same way each time."""
    if sites is None or sites == 1:
        return [pool]
    owners = [_owner(pool, file) for file in pool.files]
    patients = sorted({owner for owner in owners if owner is not None}, key=_patient_hash)
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
            ignored=pool.ignored if index == 0 else 0,
        )
        for index in range(sites)
    ]


def _owner(source: SiteSource, file: SourceFile) -> tuple[str, str] | None:
    if file.patient_id is not None:
        return file.patient_id, file.issuer
    patient_id, issuer = _patient_in_header(source.root / file.path)
    return None if patient_id is None else (patient_id, issuer)


def _patients(source: SiteSource) -> set[tuple[str, str]]:
    return {owner for file in source.files if (owner := _owner(source, file)) is not None}


def _patient_hash(patient: tuple[str, str]) -> str:
    return hashlib.sha256("\0".join(patient).encode()).hexdigest()


def _patient_in_header(path: Path) -> tuple[str | None, str]:
    """Return PatientID and its issuer from a DICOM header; (None, "") for other files or if PatientID is missing."""
    if file_kind(path) == PICTURE:
        return None, ""
    from wardround_client.sources.images.decoding.dicom_header import read_patient

    return read_patient(path)


def _content_sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_pool_of_classes(root: Path, data: DataSection) -> bool:
    known = {label.casefold() for label in data.labels}
    return any(inner.name.casefold() in known for inner in subfolders(root))


def _is_one_dicom_site(root: Path, data: DataSection, sites: int | None) -> bool:
    """Whether the folder is one site of DICOM files.

    That is the case if labels.csv or a DICOM file is at the top, or if one site is requested and the subfolders do not
    look like sites.
    """
    if (root / LABELS).is_file() or any(file_kind(path) == DICOM for path in list_files(root, deep=False)[0]):
        return True
    inside = subfolders(root)
    return sites == 1 and len(inside) > 1 and not any(_looks_like_site(inner, data) for inner in inside)


def _looks_like_site(folder: Path, data: DataSection) -> bool:
    return (folder / MANIFEST).is_file() or (folder / LABELS).is_file() or _is_pool_of_classes(folder, data)


def _refuse_shared_patients(folder: Path, found: Sequence[SiteSource]) -> None:
    if len(found) < 2 or any(SPLIT_BY_PATIENT in source.assumptions for source in found):
        return
    home: dict[tuple[str, str], str] = {}
    for source in found:
        for patient in _patients(source):
            if home.setdefault(patient, source.name) != source.name:
                raise DataError(
                    f"{folder}: one patient is at two sites, {home[patient]} and {source.name}; "
                    f"a patient belongs to one"
                )


def _refuse_one_class(folder: Path, found: Sequence[SiteSource], data: DataSection) -> None:
    counts: Counter[int] = Counter()
    for source in found:
        counts.update(file.label for file in source.files if file.label >= 0)
        if source.labels is not None:
            counts.update(data.labels.index(row.label) for row in source.labels.rows if row.label in data.labels)
    if len(counts) == 1:
        only = data.labels[next(iter(counts))]
        others = ", ".join(label for label in data.labels if label != only)
        raise DataError(f"{folder}: every label is {only}; training also needs images of {others}")


def _site_name(text: str, place: str, *, strict: bool = True) -> str:
    """Return a name that is valid for a folder.

    If `strict`, an invalid name raises `DataError`; otherwise invalid characters become hyphens.
    """
    if SITE_NAME.fullmatch(text):
        return text
    if strict:
        raise DataError(f"{place}: a site's name has up to 63 letters, digits, dots, hyphens and underscores")
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")[:63] or "site"


def _layouts(data: DataSection) -> str:
    return f"provide a manifest.csv, folders named {' and '.join(data.labels)}, or DICOM files (see docs/data.md)"
