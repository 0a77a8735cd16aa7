"""`wardround-site predict`: what a released model says about images at this site."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from wardround.cli.app import literal_console, print_table
from wardround.cli.options import JsonOption
from wardround.printable import escaped
from wardround.storage.text_file import path_text


def predict(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="The folder that `model export` wrote.")],
    source: Annotated[Path, typer.Argument(metavar="FILE|DIR", help="DICOM, PNG or JPEG: one file, or a folder.")],
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
    as_json: JsonOption = False,
) -> None:
    """Predict for images with a released model: calibrated probabilities, decisions, or a refusal. Nothing is sent.

    Images go through the same checks as in `ingest`. Exit 1: the model was asked about no image.
    """
    from wardround.errors import UsageError
    from wardround.handover.package import open_package
    from wardround.storage.disk_errors import require_writable, writing
    from wardround_client.cli.progress import stages
    from wardround_client.predict.predict import predict as predict_all
    from wardround_client.predict.results import summary_lines, table_of, to_json, write_results

    if out is not None:
        if out.exists():
            raise UsageError(f"{path_text(out)}: already exists; choose another --out")
        require_writable(out.parent)
    with stages(literal_console(stderr=True), quiet=as_json) as progress:
        found = predict_all(open_package(model), source, points, progress)
    written: list[Path] = []
    if out is not None:
        from wardround_client.predict.dicom_results import write_dicom_results

        with writing(out):
            out.mkdir()
            written = write_results(out, found) + write_dicom_results(out, found)
    if as_json:
        print(json.dumps(to_json(found)))
    else:
        print_table(*table_of(found))
        for line in summary_lines(found):
            print(escaped(line))
        if out is not None:
            dicom = sum(path.suffix == ".dcm" for path in written)
            print(escaped(f"wrote predictions.json, predictions.csv and {dicom} DICOM files to {path_text(out)}"))
    if not any(one.prediction for one in found.images):
        raise typer.Exit(1)
