"""`wardround-site enhance`: restore images at this site with a released model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from wardround.cli.options import JsonOption
from wardround.printable import escaped
from wardround.storage.text_file import path_text


def enhance(
    source: Annotated[Path, typer.Argument(metavar="FILE|DIR", help="PNG, JPEG or DICOM, one file or a folder.")],
    model: Annotated[
        Path, typer.Option("--model", metavar="FILE", help="The model.safetensors of a reconstruction run.")
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Folder for the results; default: the folder of each source."),
    ] = None,
    mask: Annotated[
        Path | None,
        typer.Option(
            "--mask",
            metavar="FILE",
            help="For a model of missing data: a picture that is white where data are missing.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Restore images with a released model. Results go beside the source, marked as derived; not for diagnostic use.

    Every frame of a file is restored. Exit 1: some images could not be restored; each is named with its reason.
    """
    from wardround_client.enhance.restore import enhance as restore_all
    from wardround_client.enhance.restore import load_restoring_model

    done = restore_all(source, load_restoring_model(model), out, mask)
    if as_json:
        refused = [{"file": str(path), "reason": reason} for path, reason in done.refused]
        print(json.dumps({"written": [str(path) for path in done.written], "refused": refused}))
    else:
        for _, reason in done.refused:
            print(escaped(f"Not restored: {reason}"))
        for path in done.written:
            print(escaped(path_text(path)))
        left = f", {len(done.refused)} not restored" if done.refused else ""
        print(f"{len(done.written)} restored{left}. They are computed images: not for diagnostic use.")
    if done.refused:
        raise typer.Exit(1)
