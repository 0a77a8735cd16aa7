"""`wardround-site predict` and `explain`: what a released model says about images at this site, and why."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wardround.cli.app import literal_console, print_table
from wardround.cli.options import JsonOption, SiteOption
from wardround.printable import escaped
from wardround.storage.text_file import path_text

if TYPE_CHECKING:
    from wardround.handover.package import Package
    from wardround_client.pacs.node import Node


def predict(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="The folder that `model export` wrote.")],
    source: Annotated[
        Path, typer.Argument(metavar="FILE|DIR", help="Images: one file or a folder; or a folder of patients' records.")
    ],
    points: Annotated[
        Path | None,
        typer.Option(
            "--points",
            metavar="FILE",
            help="A table of positions like labels.csv, for a study of marked regions; default: DIR/labels.csv.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            help="A new folder for predictions.json and .csv, and for DICOM sources a structured report and a picture.",
        ),
    ] = None,
    store: Annotated[
        str | None,
        typer.Option(
            "--store",
            metavar="NODE",
            help="Store the DICOM results in an archive, NAME of [pacs.NAME] in site.toml, if that allows it.",
        ),
    ] = None,
    site: SiteOption = Path("."),
    as_json: JsonOption = False,
) -> None:
    """Predict with a released model for images, or for patients' records: probabilities, decisions, or a refusal.

    Both go through the same checks as in `ingest`. Nothing leaves the hospital, and nothing is sent without --store.
    Exit 1: the model was asked about nothing, or a result was not stored. Exit 3: site.toml does not allow --store.
    """
    from wardround.errors import UsageError
    from wardround.handover.package import open_package
    from wardround.sources.registry import source_name
    from wardround.storage.disk_errors import require_writable

    if out is not None:
        if out.exists():
            raise UsageError(f"{path_text(out)}: already exists; choose another --out")
        require_writable(out.parent)
    archive = None if store is None else _archive(store, site, out)
    asked = _Asked(
        package=open_package(model),
        source=source,
        points=points,
        out=out,
        archive=archive,
        site=site,
        as_json=as_json,
    )
    if not PREDICTIONS[source_name(asked.package.study)](asked):
        raise typer.Exit(1)


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """What `predict` was asked: its arguments, with the model and the archive opened."""

    package: Package
    source: Path
    points: Path | None
    out: Path | None
    archive: Node | None
    site: Path
    as_json: bool


def _of_images(asked: _Asked) -> bool:
    """Predict for images, and show, write and store what the model says. Returns whether it says anything."""
    from wardround.storage.disk_errors import writing
    from wardround.text import count_text
    from wardround_client.cli.progress import stages
    from wardround_client.predict.predict import predict as predict_all
    from wardround_client.predict.results import summary_lines, table_of, to_json, write_results

    with stages(literal_console(stderr=True), quiet=asked.as_json) as progress:
        found = predict_all(asked.package, asked.source, asked.points, progress)
    dicom: list[Path] = []
    without = 0
    if asked.out is not None:
        from wardround_client.predict.dicom_results import write_dicom_results

        with writing(asked.out):
            asked.out.mkdir()
            write_results(asked.out, found)
            dicom, without = write_dicom_results(asked.out, found)
    if asked.as_json:
        print(json.dumps(to_json(found)))
    else:
        print_table(*table_of(found))
        for line in summary_lines(found):
            print(escaped(line))
        if asked.out is not None:
            place = path_text(asked.out)
            print(escaped(f"wrote predictions.json, predictions.csv and {len(dicom)} DICOM files to {place}"))
            if without:
                print(f"{count_text(without, 'finding')} without a DICOM result: the header is incomplete or damaged")
    if asked.archive is not None:
        _store(asked.archive, dicom, quiet=asked.as_json)
    return any(one.prediction for one in found.images)


def _of_records(asked: _Asked) -> bool:
    """Predict for patients' records, and show or write what the model says. Returns whether it says anything."""
    from wardround.errors import UsageError
    from wardround.storage.disk_errors import writing
    from wardround_client.cli.progress import stages
    from wardround_client.predict.records.predict import predict_records
    from wardround_client.predict.records.results import summary_lines, table_of, to_json, write_results

    for name, value in (("--points", asked.points), ("--store", asked.archive)):
        if value is not None:
            raise UsageError(f"{name}: is for images; this model reads patients' records, so leave it out")
    with stages(literal_console(stderr=True), quiet=asked.as_json) as progress:
        found = predict_records(asked.package, asked.source, asked.site, progress)
    written: list[Path] = []
    if asked.out is not None:
        with writing(asked.out):
            asked.out.mkdir()
            written = write_results(asked.out, found)
    if asked.as_json:
        print(json.dumps(to_json(found)))
    else:
        print_table(*table_of(found))
        for line in summary_lines(found):
            print(escaped(line))
        if asked.out is not None:
            pictures, place = len(written) - 2, path_text(asked.out)
            print(escaped(f"wrote predictions.json, predictions.csv and {pictures} pictures to {place}"))
    return any(one.risk is not None for one in found.patients)


PREDICTIONS = {"images": _of_images, "records": _of_records}  # by the source that a model reads


def explain(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="The folder that `model export` wrote.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="One DICOM, PNG or JPEG file.")],
    points: Annotated[
        Path | None,
        typer.Option(
            "--points",
            metavar="FILE",
            help="A table of positions like labels.csv, for a study of marked regions; default: that beside FILE.",
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="A new folder for the page, the pictures and the DICOM maps.")
    ] = Path("explanation"),
    site: Annotated[
        Path | None,
        typer.Option(
            "--site", metavar="DIR", help="A site's folder with prepared data, for simple rules that imitate the model."
        ),
    ] = None,
    store: Annotated[
        str | None,
        typer.Option(
            "--store",
            metavar="NODE",
            help="Store the DICOM maps in an archive, NAME of [pacs.NAME] in site.toml, if allowed there; with --site.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Explain a model's decision: where in the image, named outputs, simple rules, lookalikes.

    An image that is unlike the training data is not explained. Nothing leaves the hospital, and nothing is sent without
    --store. Exit 1: no image was explained, or a map was not stored. Exit 3: site.toml does not allow --store.
    """
    from wardround.errors import UsageError
    from wardround.handover.package import open_package
    from wardround.storage.disk_errors import require_writable, writing
    from wardround_client.cli.progress import stages
    from wardround_client.explain.explain import explain as explain_all
    from wardround_client.explain.results import to_json, write_explanations
    from wardround_client.predict.predict import NOTICE
    from wardround_client.predict.results import UNKNOWN

    if out.exists():
        raise UsageError(f"{path_text(out)}: already exists; choose another --out")
    require_writable(out.parent)
    if store is not None and site is None:
        raise UsageError("--store needs --site, the folder with site.toml")
    archive = None if store is None or site is None else _archive(store, site, out)
    package = open_package(model)
    if not package.has_bundle:
        task = package.study.study.task
        raise UsageError(
            f"{path_text(model)}: explains no picture, because it is a model of {task}; for patients' records, "
            "`predict` shows what each risk is made of"
        )
    with stages(literal_console(stderr=True), quiet=as_json) as progress:
        explained = explain_all(package, file, points, site, progress)
    written: list[Path] = []
    if any(one.explanation for one in explained.images):
        with writing(out):
            out.mkdir()
            written = write_explanations(out, explained)
    if as_json:
        print(json.dumps({**to_json(explained), "written": [path_text(path) for path in written]}))
    else:
        for number, one in enumerate(explained.images, 1):
            found = one.explanation
            text = f"not explained: {UNKNOWN}" if found is None else " ".join(found.statement[:1])
            print(escaped(f"image {number}: {text}"))
            if found is not None and not found.sanity.passed:
                print(f"image {number}: the maps hardly change with random weights; do not rely on them")
        for refusal in explained.found.refused:
            print(escaped(f"not used: {refusal.title}. {refusal.advice}"))
        for path in written:
            print(escaped(f"wrote {path_text(path)}"))
        print(NOTICE)
    if archive is not None:
        _store(archive, [path for path in written if path.suffix == ".dcm"], quiet=as_json)
    if not written:
        raise typer.Exit(1)


def _archive(name: str, site: Path, out: Path | None) -> Node:
    """Return the archive for --store. Raises before any work if it may not be used."""
    from wardround.errors import UsageError
    from wardround_client.pacs.node import open_node
    from wardround_client.pacs.store import require_allowed

    if out is None:
        raise UsageError("--store needs --out, the folder for the results that are stored")
    archive = open_node(site, name)
    require_allowed(archive)
    return archive


def _store(archive: Node, paths: list[Path], *, quiet: bool) -> None:
    """Store results. Raises `WardroundError` if one was not stored; a line on stderr then names the reason."""
    from wardround.errors import WardroundError
    from wardround_client.pacs.store import store

    done = store(archive, paths)
    if done.failed:
        raise WardroundError(f"{len(done.failed)} of {len(paths)} results were not stored: {done.reason}")
    if not quiet:
        print(escaped(f"stored {len(done.stored)} DICOM files in {archive.name}"))
