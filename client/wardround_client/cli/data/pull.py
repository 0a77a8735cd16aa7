"""`wardround-site pull`: fetch patients' images from the hospital's archive."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from wardround.cli.options import JsonOption, SiteOption
from wardround.errors import DataError, UsageError, WardroundError
from wardround.storage.atomic import write_file
from wardround.storage.disk_errors import writing
from wardround.storage.folders import make_folder
from wardround_client.cli.data.ingest import study_of, tell
from wardround_client.site.pacs_config import Way
from wardround_client.site.paths import COHORT, CONFIG_FILE, PULLED

if TYPE_CHECKING:
    from wardround.sources.images.study import ImageData
    from wardround.study.load import Study
    from wardround_client.pacs.manifest import Pulled
    from wardround_client.pacs.pace import Pace
    from wardround_client.pacs.pull import Order
    from wardround_client.sources.images.ahead import Ahead
    from wardround_client.sources.images.decoding.workers import WorkerPool
    from wardround_client.sources.images.folder.tables import LabelTable


def pull(
    node: Annotated[str, typer.Argument(metavar="NODE", help="The archive: NAME of [pacs.NAME] in site.toml.")],
    into_folder: Annotated[
        Path | None,
        typer.Option("--into-folder", metavar="DIR", help="A new folder for `ingest`, or that of an earlier pull."),
    ] = None,
    into: Annotated[
        Literal["cohort"] | None,
        typer.Option("--into", help="Prepare the images as they come, as `ingest` does, and keep no originals."),
    ] = None,
    study: Annotated[
        str | None,
        typer.Option("--study", metavar="FILE|HASH", help="The study, for --into cohort and --labels-from."),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            "--labels", metavar="FILE", help="A table like labels.csv, which becomes the folder's or cohort's."
        ),
    ] = None,
    labels_from: Annotated[
        Literal["sr", "seg"] | None,
        typer.Option(
            "--labels-from",
            help="With --into-folder: pull reports (SR, TID 1500) or segmentations too, and make labels.csv of them.",
        ),
    ] = None,
    first: Annotated[
        datetime | None, typer.Option("--from", formats=["%Y-%m-%d"], metavar="DATE", help="Studies from this day on.")
    ] = None,
    last: Annotated[
        datetime | None,
        typer.Option("--to", formats=["%Y-%m-%d"], metavar="DATE", help="Studies up to this day; default: today."),
    ] = None,
    accessions: Annotated[
        Path | None,
        typer.Option("--accessions", metavar="FILE", help="A table (CSV) with the column AccessionNumber."),
    ] = None,
    studies: Annotated[
        Path | None,
        typer.Option("--studies", metavar="FILE", help="A table (CSV) with the column StudyInstanceUID."),
    ] = None,
    modality: Annotated[
        str | None, typer.Option("--modality", metavar="CT", help="Only series of this modality.")
    ] = None,
    body_part: Annotated[
        str | None,
        typer.Option("--body-part", metavar="CHEST", help="Only series of this BodyPartExamined, or without one."),
    ] = None,
    description: Annotated[
        str | None,
        typer.Option(
            "--description", metavar="TEXT", help="Only series with this text in their or their study's description."
        ),
    ] = None,
    way: Annotated[
        Way | None, typer.Option("--way", help="How objects are fetched; default: that of site.toml.")
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Outside the hours of site.toml, wait for them instead of stopping.")
    ] = False,
    time_limit: Annotated[
        int, typer.Option("--time-limit", min=1, metavar="MINUTES", help="The most time that the call may take.")
    ] = 1440,
    site: SiteOption = Path("."),
    as_json: JsonOption = False,
) -> None:
    """Copy images from a PACS into a folder, as they are stored, or into the cohort. The PACS is only read.

    What came is not asked for again: after a failure, run the same command. Exit 1: something is missing. Exit 3:
    site.toml does not allow a pull at this hour.
    """
    from wardround_client.pacs.identifiers import read_list
    from wardround_client.pacs.node import open_node
    from wardround_client.pacs.pace import Pace
    from wardround_client.pacs.pull import Order
    from wardround_client.pacs.query import Wanted, check_request

    wanted = Wanted(
        first=None if first is None else first.date(),
        last=None if last is None else last.date(),
        modality=None if modality is None else modality.upper(),
        body_part=body_part,
        description=description,
        annotations=None if labels_from is None else labels_from.upper(),
        accessions=() if accessions is None else read_list(accessions, "AccessionNumber"),
        studies=() if studies is None else read_list(studies, "StudyInstanceUID"),
    )
    check_request(wanted)
    if (into is None) == (into_folder is None):
        raise UsageError("give either --into-folder DIR or --into cohort")
    if labels_from is not None and (into is not None or labels is not None):
        raise UsageError("--labels-from: with --into-folder, and without --labels")
    if (into is None and labels_from is None) != (study is None):
        raise UsageError("--study goes together with --into cohort or --labels-from")
    if into_folder is not None and site.resolve().is_relative_to(into_folder.resolve()):
        raise UsageError(f"{site}: lies inside {into_folder}; pull into a folder of its own")
    archive = open_node(site, node)
    table = None if labels is None else _table(labels)
    order = Order(
        node=archive,
        wanted=wanted,
        folder=site / PULLED if into_folder is None else into_folder,
        way=way or archive.config.way,
        today=datetime.now().date(),
    )
    pace = Pace(archive, 60.0 * time_limit, wait=wait)
    data = None if study is None else _images_of(study_of(site, study))
    if into is None or data is None:
        _into_folder(order, pace, labels, as_json=as_json, labels_from=labels_from, data=data)
    else:
        _into_cohort(order, pace, site, data, table, as_json=as_json)


def _images_of(study: Study) -> ImageData:
    """Return what a study asks of images. Raises `UsageError` if it reads something else."""
    from wardround.sources.images.study import ImageData

    if not isinstance(study.data, ImageData):
        raise UsageError(f"--study: {study.study.name} reads no images, and a PACS has nothing else")
    return study.data


def _into_folder(
    order: Order, pace: Pace, labels: Path | None, *, as_json: bool, labels_from: str | None, data: ImageData | None
) -> None:
    from wardround_client.pacs.pull import pull as pull_all
    from wardround_client.sources.images.folder.files import LABELS

    with _bar(as_json) as progress:
        pulled = pull_all(order, pace, progress)
    if labels is not None:
        with writing(order.folder):
            write_file(order.folder / LABELS, labels.read_bytes())
    _tell(pulled, as_json=as_json)
    if labels_from is None or data is None:
        return
    from wardround_client.sources.images.decoding.annotations import read_annotations

    found = read_annotations(sorted(order.folder.glob("*.dcm")), labels_from, data)
    kind = labels_from.upper()
    if not found.places:
        raise DataError(
            f"{order.node.name}: none of {found.objects} {kind} objects has a finding with an image and a label of the "
            f"study ({', '.join(data.labels)}); no labels.csv was written"
        )
    with writing(order.folder):
        write_file(order.folder / LABELS, found.table().encode())
    if not as_json:
        print(f"labels.csv: {len(found.places):,} labelled places from {found.objects:,} {kind} objects")
        for count, why in (
            (found.without_label, "findings without exactly one label of the study"),
            (found.without_place, "findings that refer to no image"),
            (found.unreadable, "objects that cannot be read"),
        ):
            if count:
                print(f"{count:>8,}  {why}")


def _into_cohort(
    order: Order, pace: Pace, site: Path, data: ImageData, labels: LabelTable | None, *, as_json: bool
) -> None:
    """Pull, prepare and ingest. What was fetched is removed when the cohort is written."""
    from wardround_client.pacs.pull import pull as pull_all
    from wardround_client.site.config import load_site_config
    from wardround_client.site.enrolment import pseudonym_key
    from wardround_client.sources.forget import remove_objectors, remove_pulled
    from wardround_client.sources.images.ahead import Ahead, MustComeAgainError, Origin
    from wardround_client.sources.images.decoding.workers import WorkerPool
    from wardround_client.sources.images.ingest import ingest
    from wardround_client.sources.opt_out import opted_out
    from wardround_client.sources.registry import source_of

    key, name = pseudonym_key(site), load_site_config(site / CONFIG_FILE).name
    with writing(order.folder):
        make_folder(order.folder)
    try:
        with WorkerPool(os.cpu_count() or 1) as pool:
            for last_attempt in (False, True):
                objectors = opted_out(site)
                origin = Origin(data=data, labels=labels, key=key, objectors=objectors, request=order.wanted.in_full)
                ahead = Ahead(order.folder, origin)
                with _bar(as_json) as progress:
                    pulled = pull_all(order, pace, progress, _Taken(ahead, pool))
                if not pulled.complete:
                    _tell(pulled, as_json=as_json)
                if not pulled.objects:
                    raise WardroundError(
                        f"{order.node.name}: nothing there matches the request; the cohort is as it was"
                    )
                try:
                    report = ingest(
                        ahead.source(name),
                        data,
                        site / COHORT,
                        key,
                        workers=1,
                        objectors=opted_out(site),
                        pool=pool,
                        ahead=ahead,
                    )
                    break
                except MustComeAgainError:
                    if last_attempt:
                        raise
        remove_pulled(site)
    finally:
        remove_objectors(site, key)
    if not as_json:
        _tell(pulled, as_json=False)
    tell(report, source_of(data), order.folder, site, as_json=as_json)


def _tell(pulled: Pulled, *, as_json: bool) -> None:
    """Print how a pull ended. Raises, or exits with 1, if it is not complete."""
    from wardround.printable import escaped
    from wardround_client.pacs.manifest import summary_of

    if as_json:
        print(json.dumps(pulled.to_json()))
    else:
        for line in summary_of(pulled):
            print(escaped(line))
    if pulled.stopped:
        raise WardroundError(pulled.stopped)
    if not pulled.complete:
        raise typer.Exit(1)


def _bar(quiet: bool) -> AbstractContextManager[Callable[[str, int, int], None]]:
    from wardround.cli.app import literal_console
    from wardround_client.cli.progress import stages

    return stages(literal_console(stderr=True), quiet=quiet)


def _table(path: Path) -> LabelTable:
    from wardround_client.sources.images.folder.tables import read_label_table

    return read_label_table(path)


class _Taken:
    """Prepares complete studies while further ones come."""

    def __init__(self, ahead: Ahead, pool: WorkerPool) -> None:
        self._ahead, self._pool = ahead, pool

    @property
    def names(self) -> frozenset[str]:
        return self._ahead.names

    def take(self, names: Sequence[str]) -> None:
        with writing(self._ahead.folder):
            self._ahead.prepare(names, self._pool)
