"""`wardround-sim pretrain`: the shipped networks, from nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from wardround.errors import UsageError

app = typer.Typer(rich_markup_mode=None)


@app.command(epilog="Example: wardround-sim pretrain restorer.safetensors --network restorer --degradation low-dose")
def pretrain(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The .safetensors file to write.")],
    network: Annotated[
        str, typer.Option(metavar="NAME", help="encoder (of classification) or restorer (of reconstruction).")
    ] = "encoder",
    degradation: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="What a restorer undoes: super-resolution, low-dose, blur or missing."),
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, metavar="N", help="Default: the shipped file's.")] = None,
    crops: Annotated[
        int | None, typer.Option(min=1000, metavar="N", help="Phantoms to train on; default: the shipped file's.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, metavar="N", help="Default: the shipped file's.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON and nothing else.")] = False,
) -> None:
    """Train a shipped network from nothing. Generated crops go in, weights come out; no patient is involved."""
    _check_pretrain(network, degradation)
    if file.exists():
        raise UsageError(f"{file}: exists already; choose another name")
    if file.suffix != ".safetensors":
        raise UsageError(f"{file}: must end in .safetensors")
    from wardround_simulation.progress import RunProgress

    with RunProgress(Console(stderr=True), 0, quiet=as_json) as progress:
        progress.stage("Loading torch")
        chosen = {k: v for k, v in {"seed": seed, "crops": crops, "epochs": epochs}.items() if v is not None}
        if network == "restorer":
            from wardround_simulation.pretrain_restorer import pretrain_restorer

            metadata = pretrain_restorer(file, degradation, **chosen, progress=progress.named_pieces)
        else:
            from wardround_simulation.pretrain import pretrain as train

            metadata = train(file, **chosen, progress=progress.named_pieces)
    if as_json:
        print(json.dumps(metadata))
    else:
        Console().print(f"Wrote {file}: {metadata}", soft_wrap=True)


def _check_pretrain(network: str, degradation: str | None) -> None:
    kinds = ("super-resolution", "low-dose", "blur", "missing")
    if network not in ("encoder", "restorer"):
        raise UsageError(f"--network {network}: is none of encoder, restorer")
    if network == "restorer" and degradation not in kinds:
        raise UsageError(f"--degradation {degradation or 'is missing'}: a restorer undoes one of {', '.join(kinds)}")
    if network == "encoder" and degradation is not None:
        raise UsageError("--degradation: is for --network restorer")
