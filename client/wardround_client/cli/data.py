"""`wardround-site ingest` and `forget`: prepare patients' images, and remove those of a patient who objects."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wardround.cli.options import JsonOption, SiteOption, YesOption
from wardround.errors import DataError, StudyError, UsageError, WardroundError
from wardround.text import count_text
from wardround_client.site.pacs_config import Way
from wardround_client.site.paths import COHORT, CONFIG_FILE

if TYPE_CHECKING:
    from wardround.study.load import Study
    from wardround_client.sources.registry import IngestReport, Progress

app = typer.Typer(rich_markup_mode=None)
LEAST_OF_A_HASH = 8


@app.command(
    epilog="Example: wardround-site pull archive --from 2024-01-01 --modality CT --into-folder /data/ct --site north"
)
def pull(
    node: Annotated[str, typer.Argument(metavar="NODE", help="The archive: NAME of [pacs.NAME] in site.toml.")],
    into_folder: Annotated[
        Path,
        typer.Option("--into-folder", metavar="DIR", help="A new folder for `ingest`, or that of an earlier pull."),
    ],
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
    """Copy images from a PACS into a folder, as they are stored. The PACS is only read.

    What came is not asked for again: after a failure, run the same command. Exit 1: something is missing. Exit 3:
    site.toml does not allow a pull at this hour.
    """
    from wardround.cli.app import literal_console
    from wardround.printable import escaped
    from wardround_client.cli.progress import stages
    from wardround_client.pacs.node import open_node
    from wardround_client.pacs.pace import Pace
    from wardround_client.pacs.query import Wanted, read_list, refuse_unbounded

    wanted = Wanted(
        first=None if first is None else first.date(),
        last=None if last is None else last.date(),
        modality=modality,
        body_part=body_part,
        description=description,
        accessions=() if accessions is None else read_list(accessions, "AccessionNumber"),
        studies=() if studies is None else read_list(studies, "StudyInstanceUID"),
    )
    refuse_unbounded(wanted)
    if site.resolve().is_relative_to(into_folder.resolve()):
        raise UsageError(f"{site}: lies inside {into_folder}; pull into a folder of its own")
    archive = open_node(site, node)
    from wardround_client.pacs.pull import pull as pull_all
    from wardround_client.pacs.pull import summary_of

    pace, today = Pace(archive, 60.0 * time_limit, wait=wait), datetime.now().date()
    with stages(literal_console(stderr=True), quiet=as_json) as progress:
        pulled = pull_all(archive, wanted, into_folder, way or archive.config.way, pace, today, progress)
    if as_json:
        print(json.dumps(pulled.to_json()))
    else:
        for line in summary_of(pulled):
            print(escaped(line))
    if pulled.stopped:
        raise WardroundError(pulled.stopped)
    if not pulled.complete:
        raise typer.Exit(1)


@app.command(epilog="Example: wardround-site ingest /data/ct --study studies/lidc.toml --site north")
def ingest(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="This hospital's data; docs/data.md shows the layouts.")
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
            "--image-is-patient", help="Treat every picture as a different patient; only if you know that this is true."
        ),
    ] = False,
    workers: Annotated[
        int | None,
        typer.Option("--workers", min=1, metavar="N", help="Number of decoding processes. Default: one per core."),
    ] = None,
    site: SiteOption = Path("."),
    as_json: JsonOption = False,
) -> None:
    """Prepare this hospital's images. Files are only read; the quality report lists what was put aside and why."""
    from wardround_client.site.config import load_site_config
    from wardround_client.site.enrolment import pseudonym_key
    from wardround_client.sources.forget import remove_objectors
    from wardround_client.sources.opt_out import opted_out
    from wardround_client.sources.registry import source_of

    config = load_site_config(site / CONFIG_FILE)
    if site.resolve().is_relative_to(folder.resolve()):
        raise UsageError(f"{site}: lies inside {folder}, so its own files would be taken for data; use another folder")
    key, objectors, asked = pseudonym_key(site), opted_out(site), _study(site, study)
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
    if as_json:
        print(json.dumps(report.to_json()))
        if report.lost_most:
            raise typer.Exit(1)
        return
    quality = report.quality
    print(report.summary)
    if quality.unlabelled:
        print(f"{quality.unlabelled:>8,}  used without a label")
    for _, text, count in source.not_used_by_reason(quality):
        print(f"{count:>8,}  {text}")
    print(f"Quality report: {site / COHORT / source.REPORT_PAGE}")
    if report.lost_most:
        raise DataError(
            f"{folder}: more files could not be read ({report.unread}) than {quality.row}s are used ({quality.rows}); "
            "the cohort was made from these alone. Check the reasons in the quality report"
        )


@app.command(epilog="Example: wardround-site forget - --site north")
def forget(
    patient: Annotated[
        str,
        typer.Argument(
            metavar="PATIENT",
            help="PatientID as in the data; - prompts for it, which keeps it out of the shell history.",
        ),
    ],
    issuer: Annotated[
        str,
        typer.Option(
            "--issuer", metavar="I", help="IssuerOfPatientID; only for cohorts that an earlier version prepared."
        ),
    ] = "",
    yes: YesOption = False,
    site: SiteOption = Path("."),
    as_json: JsonOption = False,
) -> None:
    """Record a patient's objection: exclude the patient from now on and remove their prepared images here.

    What was learned before stays accounted for in the ledger. Source files are not changed.
    """
    from wardround_client.site.config import load_site_config
    from wardround_client.site.enrolment import pseudonym_key
    from wardround_client.sources.forget import forget as forget_patient

    load_site_config(site / CONFIG_FILE)
    key = pseudonym_key(site)
    if patient == "-":
        patient = (
            typer.prompt("PatientID", hide_input=True) if sys.stdin.isatty() else sys.stdin.readline().rstrip("\n")
        )
    if not yes:
        if as_json or not sys.stdin.isatty():
            raise UsageError("no command can undo this; run it again with --yes to confirm")
        if not typer.confirm("Keep this patient out of everything from now on, and remove their prepared images?"):
            raise UsageError("nothing was changed")
    done = forget_patient(site, key, patient, issuer, record=lambda count: _record_objections(site, count))
    if as_json:
        print(json.dumps(asdict(done)))
        return
    print(
        f"{'Already recorded' if done.already else 'Objection recorded'}; {done.images_removed} prepared images removed"
    )
    if not done.images_removed and not done.already:
        print("This patient had no prepared image; if that is unexpected, compare PatientID with the data.")
    if done.similar:
        print(
            f"Not sure: {count_text(done.similar, 'prepared patient')} with an ID that differs only in case, spaces, "
            "hyphens or leading zeros. If it is the same person, run forget with that spelling too."
        )
    if done.earlier_identity:
        print(
            "Not sure: this cohort was prepared by an earlier version, in which one patient's images under different "
            "issuers were different patients. Run ingest again; it leaves out all images of this PatientID."
        )


def _record_objections(site: Path, count: int) -> None:
    """Record in the audit log how many patients object, unless the number is there already."""
    from wardround.records.audit_events import PatientForgotten
    from wardround.records.audit_log import AUDIT_FILE, AuditLog, verified

    path = site / AUDIT_FILE
    entries = verified(path).entries if path.exists() else ()
    known = next((entry["count"] for entry in reversed(entries) if entry["event"] == "forgot"), 0)
    if count > known:
        AuditLog(path).append(PatientForgotten(count=count))


def _study(site: Path, text: str) -> Study:
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
