"""`wardround-site enhance`: restore images at this site with a released model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from wardround.cli.options import JsonOption


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
    """Restore images with a released model. Results go beside the source, marked as derived; not for diagnostic use."""
    from wardround_client.enhance.restore import enhance as restore_all
    from wardround_client.enhance.restore import load_restoring_model

    done = restore_all(source, load_restoring_model(model), out, mask)
    if as_json:
        refused = [{"file": str(path), "reason": reason} for path, reason in done.refused]
        print(json.dumps({"written": [str(path) for path in done.written], "refused": refused}))
        return
    for _, reason in done.refused:
        print(f"Not restored: {reason}")
    for path in done.written:
        print(path)
    print(f"{len(done.written)} restored. They are computed images: not for diagnostic use.")
