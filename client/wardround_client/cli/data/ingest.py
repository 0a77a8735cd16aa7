"""`wardround-site ingest`: prepare patients' images."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wardround.cli.options import JsonOption, SiteOption
from wardround.errors import DataError, StudyError, UsageError
from wardround_client.site.paths import COHORT, CONFIG_FILE

if TYPE_CHECKING:
    from wardround.study.load import Study
    from wardround_client.sources.registry import IngestReport, Progress, Source

LEAST_OF_A_HASH = 8


def ingest(
    folder: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="This hospital's data; docs/data.md and docs/records.md show the layouts."),
    ],
    study: Annotated[
        str,
        typer.Option(
            "--study",
            metavar="FILE|HASH",
            help="The study that defines what to prepare: a file, or the hash of a received study.",
        ),
    ],
    image_is_patient: Annotated[
        bool,
        typer.Option(
            "--image-is-patient",
            help="Treat every picture, or row of a table without patient_id, as a different patient; only if you know "
            "that this is true.",
        ),
    ] = False,
    workers: Annotated[
        int | None,
        typer.Option("--workers", min=1, metavar="N", help="Number of decoding processes. Default: one per core."),
    ] = None,
    site: SiteOption = Path("."),
    as_json: JsonOption = False,
) -> None:
    """Prepare this hospital's images or records. Files are only read; the quality report says what was put aside."""
    from wardround_client.site.config import load_site_config
    from wardround_client.site.enrolment import pseudonym_key
    from wardround_client.sources.forget import remove_objectors
    from wardround_client.sources.opt_out import opted_out
    from wardround_client.sources.registry import source_of

    config = load_site_config(site / CONFIG_FILE)
    if site.resolve().is_relative_to(folder.resolve()):
        raise UsageError(f"{site}: lies inside {folder}, so its own files would be taken for data; use another folder")
    key, objectors, asked = pseudonym_key(site), opted_out(site), study_of(site, study)
    source = source_of(asked.data)
    found = source.of_one_hospital(folder, asked.data, config.name)
    if found.patients_are_assumed and not image_is_patient:
        raise DataError(f"{folder}: {source.UNKNOWN_PATIENTS}")

    def work(progress: Progress | None) -> IngestReport:
        workers_ = workers or os.cpu_count() or 1
        return source.ingest(
            found, asked.data, site / COHORT, key, workers=workers_, objectors=objectors, progress=progress
        )

    try:
        report = work(None) if as_json else _with_bar(work)
    finally:
        remove_objectors(site, key)  # patients who objected during the ingest
    tell(report, source, folder, site, as_json=as_json)


def tell(report: IngestReport, source: Source, folder: Path, site: Path, *, as_json: bool) -> None:
    """Print the result of an ingest. Exit 1 if more files could not be read than are used."""
    if as_json:
        print(json.dumps(report.to_json()))
        if report.lost_most:
            raise typer.Exit(1)
        return
    from wardround_client.sources.quality import not_used_by_reason

    quality = report.quality
    print(report.summary)
    if quality.unlabelled:
        print(f"{quality.unlabelled:>8,}  used without a label")
    for _, text, count in not_used_by_reason(quality, source.REASONS, source.LEFT_OUT):
        print(f"{count:>8,}  {text}")
    print(f"Quality report: {site / COHORT / source.REPORT_PAGE}")
    if report.lost_most:
        raise DataError(
            f"{folder}: more files could not be read ({report.unread}) than {quality.row}s are used ({quality.rows}); "
            "the cohort was made from these alone. Check the reasons in the quality report"
        )


def study_of(site: Path, text: str) -> Study:
    """Load a study from its file, or by the hash (or its first letters) of one that was received or approved here."""
    from wardround.study.load import load_study
    from wardround_client.studies import store

    if Path(text).is_file() or not set(text) <= set("0123456789abcdef") or len(text) < LEAST_OF_A_HASH:
        return load_study(Path(text))
    found = store.stored_hashes(site, text)
    if len(found) != 1:
        raise StudyError(f"{site}: {'no study' if not found else 'more than one study'} here has the hash {text}")
    path = store.stored_path(site, found[0])
    read = store.read_study(path)
    if read.sha256() != found[0]:
        raise StudyError(f"{path}: was altered; ask the operator for the study again")
    return read


def _with_bar(work: Callable[[Progress], IngestReport]) -> IngestReport:
    from wardround.cli.app import literal_console
    from wardround_client.cli.progress import stages

    with stages(literal_console(stderr=True), quiet=False) as progress:
        return work(lambda done, total: progress("files and images", done, total))
