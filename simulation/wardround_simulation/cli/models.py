"""`wardround-sim pretrain`, `generate`, `export` and `verify`: models from phantoms, and what leaves with a model."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from wardround.cli.app import literal_console
from wardround.cli.handover import (
    AttackOption,
    ForceOption,
    LicenseOption,
    PackageArgument,
    TargetArgument,
    print_exported,
    print_findings,
)
from wardround.cli.options import JsonOption
from wardround.errors import UsageError
from wardround.storage.disk_errors import require_writable

if TYPE_CHECKING:
    from wardround.tasks.reconstruction.degradations import Kind

NETWORKS = ("encoder", "familiarity", "named-outputs", "sampler", "gan", "restorer", "gru")
DEGRADATIONS = ("super-resolution", "low-dose", "blur", "missing")
FORMATS = ("grid", "folder", "dicom")

app = typer.Typer(rich_markup_mode=None)


@app.command(epilog="Example: wardround-sim pretrain encoder.safetensors")
def pretrain(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The .safetensors file to write.")],
    network: Annotated[
        str, typer.Option("--network", metavar="NAME", help=f"The network to train: {', '.join(NETWORKS)}.")
    ] = "encoder",
    degradation: Annotated[
        str | None,
        typer.Option(metavar="NAME", help=f"The degradation that a restorer removes: {', '.join(DEGRADATIONS)}."),
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, metavar="N", help="Default: the shipped file's.")] = None,
    crops: Annotated[
        int | None,
        typer.Option(min=1000, metavar="N", help="Phantoms to train on; default: the shipped file's. Not for gru."),
    ] = None,
    stays: Annotated[
        int | None,
        typer.Option(min=1000, metavar="N", help="Simulated stays to train gru on; default: the shipped file's."),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Default: the shipped file's. Not for sampler and named-outputs."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Reproduce a shipped file: train a network on generated crops or simulated stays, without data of any patient."""
    if network not in NETWORKS:
        raise UsageError(f"--network {network}: choose from {', '.join(NETWORKS)}")
    if network in ("sampler", "named-outputs") and epochs is not None:
        raise UsageError(f"--epochs: is not for --network {network}, which is not trained in epochs; leave it out")
    if network == "gru" and crops is not None:
        raise UsageError("--crops: is not for --network gru, which trains on simulated stays; give --stays")
    if network != "gru" and stays is not None:
        raise UsageError("--stays: is only for --network gru; leave it out")
    if network == "restorer" and degradation not in DEGRADATIONS:
        raise UsageError(f"--degradation {degradation or 'is missing'}: choose from {', '.join(DEGRADATIONS)}")
    if network != "restorer" and degradation is not None:
        raise UsageError("--degradation: is only for --network restorer; leave it out")
    if file.exists():
        raise UsageError(f"{file}: already exists; choose another name")
    if file.suffix != ".safetensors":
        raise UsageError(f"{file}: must end in .safetensors")
    if not file.parent.is_dir():
        raise UsageError(f"{file.parent}: no such folder; choose another file")
    require_writable(file.parent)  # before the training, which may take hours
    from wardround_simulation.cli.progress import RunProgress

    with RunProgress(literal_console(stderr=True), 0, quiet=as_json) as progress:
        progress.stage("Loading torch")
        chosen = {"seed": seed, "crops": crops, "stays": stays, "epochs": epochs}
        given = {name: value for name, value in chosen.items() if value is not None}
        metadata = _trainer(network, degradation)(file, **given, progress=progress.named_pieces)
    if as_json:
        print(json.dumps(metadata))
    else:
        print(f"Wrote {file}: {metadata}")


def _trainer(network: str, degradation: str | None) -> Callable[..., dict[str, str]]:
    if network == "restorer":
        from wardround_simulation.phantoms.pretrain_restorer import pretrain_restorer

        return functools.partial(pretrain_restorer, kind=cast("Kind", degradation))
    if network == "familiarity":
        from wardround_simulation.phantoms.pretrain_familiarity import pretrain_familiarity

        return pretrain_familiarity
    if network == "named-outputs":
        from wardround_simulation.phantoms.pretrain_named_outputs import pretrain_named_outputs

        return pretrain_named_outputs
    if network == "gru":
        from wardround_simulation.stays.pretrain_gru import pretrain_gru

        return pretrain_gru
    if network == "gan":
        from wardround_simulation.phantoms.pretrain_gan import pretrain_gan

        return pretrain_gan
    if network == "sampler":
        from wardround_simulation.phantoms.pretrain_sampler import pretrain_sampler

        return pretrain_sampler
    from wardround_simulation.phantoms.pretrain_encoder import pretrain as pretrain_encoder

    return pretrain_encoder


@app.command(epilog="Example: wardround-sim generate runs/synthesis --count 200 --format folder")
def generate(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="The --out folder of a finished synthesis run.")],
    count: Annotated[int, typer.Option(min=1, max=100_000, metavar="N", help="Number of images.")] = 64,
    label: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only images of this label; default: all labels.")
    ] = None,
    format_: Annotated[
        str,
        typer.Option(
            "--format", metavar="NAME", help="grid: one PNG; folder: PNG files and manifest.csv; dicom: marked files."
        ),
    ] = "grid",
    out: Annotated[
        Path | None, typer.Option("--out", metavar="PATH", help="The new file or folder; nothing is overwritten.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="The same seed gives the same images.")] = 1,
    as_json: JsonOption = False,
) -> None:
    """Generate images of no patient from a trained model. Every file states this, the study and its ε."""
    if format_ not in FORMATS:
        raise UsageError(f"--format {format_}: choose from {', '.join(FORMATS)}")
    target = out or folder / ("synthetic.png" if format_ == "grid" else f"synthetic-{format_}")
    if target.exists():
        raise UsageError(f"{target}: already exists; choose another --out")
    if not target.parent.is_dir():
        raise UsageError(f"{target.parent}: no such folder; choose another --out")
    if format_ == "grid" and target.suffix.lower() != ".png":
        raise UsageError(f"{target}: the name of a grid must end in .png")
    from wardround_simulation.run.preflight import check_outside_data

    check_outside_data(target, folder)
    require_writable(target.parent)
    from wardround_simulation.cli.progress import RunProgress

    with RunProgress(literal_console(stderr=True), 0, quiet=as_json) as progress:
        progress.stage("Reading the run")
        from wardround.tasks.registry import use_part
        from wardround_simulation.synthetic_files import open_model, write_synthetic

        model = open_model(folder)
        wanted = model.label_number(label)
        progress.stage("Generating images")
        use = use_part(model.study.study.task)
        made = use.make_images(model.network, count, seed, wanted, progress.pieces)
        written = write_synthetic(target, format_, made, model, seed)
    if as_json:
        print(json.dumps({"out": str(target), "files": written, "images": count, **model.origin(seed)}))
    else:
        print(f"{count} synthetic images in {target}. {model.says}")


@app.command(epilog="Example: wardround-sim export runs/demo models/demo")
def export(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="The --out folder of a finished run.")],
    target: TargetArgument,
    attack: AttackOption = None,
    force_unsafe: ForceOption = False,
    license_: LicenseOption = "other",
    as_json: JsonOption = False,
) -> None:
    """Export a run's model with ONNX file, MONAI bundle and model card, if its attack report keeps the bound of ε.

    Without --attack, attack.json of the run is used. Exit code 3: the release gate is closed.
    """
    from wardround_simulation.run.handover import export_folder

    exported = export_folder(folder, target, attack=attack, force=force_unsafe, license=license_)
    print_exported(exported, as_json)


@app.command(epilog="Example: wardround-sim verify models/demo")
def verify(folder: PackageArgument, as_json: JsonOption = False) -> None:
    """Check an exported model: hashes, architecture, ONNX file against torch, cards, bundle. Exit code 1: a fault."""
    print_findings(folder, as_json)
