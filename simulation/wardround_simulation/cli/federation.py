"""`wardround-sim federation`: a server and its sites as real processes on this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wardround.cli.app import literal_console
from wardround.cli.options import JsonOption
from wardround.storage.disk_errors import require_writable

if TYPE_CHECKING:
    from wardround.study.load import Study

PHANTOM_SITES, PHANTOM_PATIENTS, PHANTOM_SEED = 5, 80, 7

app = typer.Typer(rich_markup_mode=None)


def phantom_patients(study: Study) -> int:
    """Return the patients of an average phantom hospital: with it, `nominal_patients` are left for training."""
    return round(study.privacy.nominal_patients / (1 - study.evaluation.holdout))


@app.command(epilog="Example: wardround-sim federation studies/demo.toml --sites 5 --out runs/federation")
def federation(
    study: Annotated[
        Path | None, typer.Argument(metavar="[STUDY]", help="The study file. Default: studies/demo.toml.")
    ] = None,
    sites: Annotated[
        int | None,
        typer.Option("--sites", min=1, metavar="N", help="Phantom hospitals. Default: the study's nominal_sites."),
    ] = None,
    patients: Annotated[
        int | None,
        typer.Option(
            "--patients",
            min=1,
            metavar="N",
            help="Patients of an average hospital. Default: what leaves the study's nominal_patients for training.",
        ),
    ] = None,
    out: Annotated[
        Path,
        typer.Option("--out", metavar="DIR", help="The folder for server and sites; an existing one is continued."),
    ] = Path("runs/federation"),
    as_json: JsonOption = False,
) -> None:
    """Run a real federation on this machine: server and sites as processes with keys and TLS, stopped at the end.

    Creates and enrols the sites, starts all daemons, submits the study, approves it at each site, trains it on phantom
    hospitals, and shows the run and each site's ledger. The folders are kept.
    """
    from wardround.study.load import load_study
    from wardround.study.ready_studies import ready_study
    from wardround_simulation.cli.progress import RunProgress
    from wardround_simulation.local.federation import LocalFederation
    from wardround_simulation.run.phantom_data import make_once, phantom_folder, phantom_kind
    from wardround_simulation.run.preflight import check_number_of_sites

    path = (study or ready_study("demo")).resolve()
    loaded = load_study(path)
    sites, patients = sites or loaded.aggregation.nominal_sites, patients or phantom_patients(loaded)
    check_number_of_sites(loaded, f"--sites {sites}", sites)
    out = out.resolve()
    data = phantom_folder(loaded, out, sites, patients)
    names = tuple(f"hospital-{number}" for number in range(1, sites + 1))
    for folder in (out, *(() if data.exists() else (data,))):
        require_writable(folder)
    here = LocalFederation(folder=out, data=data, sites=names)
    run = here.finished(loaded)
    known = run is not None
    if run is None:
        with here.alone(), RunProgress(literal_console(stderr=True), loaded.study.rounds, quiet=as_json) as progress:
            if not data.exists():
                progress.stage(f"Writing {sites} {phantom_kind(loaded).says}")
                make_once(loaded, data, sites, patients, PHANTOM_SEED, progress.pieces)
            here.found(progress)
            here.ingest(path, progress)
            with here.daemons(progress) as running:
                submitted = here.submit(path)
                run = submitted["run"]
                here.approve(submitted["study_sha256"], running, progress)
                here.watch(run, loaded, running, progress)
                progress.stage("Stopping the server and the sites")
    if as_json:
        print(json.dumps(here.status_json(run)))
        return
    print(here.status(run), end="")
    print(f"\nFolders: {out}; model: {here.server / 'runs' / run / 'model.safetensors'}")
    if known:
        print("This study is already finished in this folder; choose another --out to train it again.")
