"""`wardround-sim`: both sides of a federation on one machine.

Heavy imports (torch, Flower, Ray, matplotlib) happen inside the commands, so that `--help` and mistakes answer at once.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from wardround.cli.app import literal_console, program, run_program
from wardround.cli.options import JsonOption
from wardround.errors import UsageError, required
from wardround.processes.imports import collection_paused
from wardround.storage.disk_errors import require_writable, writing
from wardround.storage.text_file import path_text
from wardround.text import count_text
from wardround_simulation.cli import federation, models
from wardround_simulation.cli.federation import PHANTOM_PATIENTS, PHANTOM_SEED, PHANTOM_SITES, phantom_patients
from wardround_simulation.run.paths import EXAMPLE_PAGE, SITES, TEST_SITES

app = program(
    "wardround-sim",
    "Federated learning across hospitals, simulated on one machine. Research software, not a medical device.",
)

StudyArgument = Annotated[
    Path | None, typer.Argument(metavar="[STUDY]", help="The study file, for example studies/lidc.toml.")
]
DataOption = Annotated[
    Path | None, typer.Option("--data", metavar="DIR", help="The data folder; docs/data.md describes its layouts.")
]
TestDataOption = Annotated[
    Path | None, typer.Option("--test-data", metavar="DIR", help="An external test set with other patients.")
]
SitesOption = Annotated[
    int | None, typer.Option("--sites", min=1, metavar="N", help="Split a pool of patients over N sites.")
]
OutOption = Annotated[
    Path | None,
    typer.Option(
        "--out", metavar="DIR", help="The folder for results; an existing run in it is continued. Default: in runs/."
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override a key of the study, for example privacy.epsilon=3; may be repeated.",
    ),
]


@app.command(epilog="Example: wardround-sim run studies/lidc.toml --data lidc_nodules --set privacy.epsilon=3")
def run(
    study: StudyArgument = None,
    data: DataOption = None,
    sites: SitesOption = None,
    test_data: TestDataOption = None,
    out: OutOption = None,
    set_: SetOption = None,
    device: Annotated[str, typer.Option(metavar="NAME", help="auto, cpu or cuda.")] = "auto",
    ray_address: Annotated[
        str | None,
        typer.Option("--ray-address", metavar="ADDRESS", help="An existing Ray cluster; default: this machine."),
    ] = None,
    baselines: Annotated[bool, typer.Option(help="Also train at each hospital alone and on all data pooled.")] = True,
    show_images: Annotated[
        bool,
        typer.Option(
            "--show-images",
            help="Show sample images in the report. Phantoms are always shown, patients only with this option.",
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Simulate one federated run. Without a study and data, or without data for any study but one of classification, it
    creates phantom hospitals and trains on them.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise UsageError(f"--device {device}: must be auto, cpu or cuda")
    from wardround.study.load import load_study
    from wardround.study.ready_studies import ready_study
    from wardround.tasks.registry import commands_of
    from wardround_simulation.run.phantom_data import make_once, phantom_folder, phantom_kind

    path = study or ready_study("demo")
    loaded = load_study(path, tuple(set_ or ()))
    out = out or Path("runs") / loaded.study.name
    if data is None and study is not None and not commands_of(loaded.study.task).phantoms:
        raise UsageError("--data is missing: give the folder with the data (without a study, phantoms are created)")
    phantoms = data is None
    hospitals, patients = sites or loaded.aggregation.nominal_sites, phantom_patients(loaded)
    data = data or phantom_folder(loaded, out, hospitals, patients)
    from wardround_simulation.run import preflight

    finished = preflight.finished_result(out, loaded, data, test_data)
    if finished is not None:
        _show_result(finished, out, as_json, "This run is already finished; choose another --out to train again.")
        return
    preflight.check_out(out, loaded, data, test_data)
    if ray_address is not None:
        preflight.check_ray_address(ray_address)
    if phantoms:
        preflight.check_number_of_sites(loaded, f"--sites {hospitals}", hospitals)
    from wardround_simulation.cli.progress import RunProgress

    with RunProgress(literal_console(stderr=True), loaded.study.rounds, quiet=as_json) as progress:
        if phantoms:
            if not data.exists():
                require_writable(data)
                progress.stage(f"Writing {hospitals} {phantom_kind(loaded).says}")
                make_once(loaded, data, hospitals, patients, PHANTOM_SEED, progress.pieces)
            sites = None
        material = preflight.survey(loaded, data, test_data, sites)
        with preflight.claimed(out, loaded, data, test_data) as run_id:
            progress.stage("Loading torch and Flower")
            with collection_paused():
                from wardround_simulation.run.run import RunSettings, finish
                from wardround_simulation.run.run import run as run_study

            settings = RunSettings(
                material=material,
                out=out,
                device=device,
                ray_address=ray_address,
                phantoms=phantoms,
                show_images=show_images,
                baselines=baselines,
                command=shlex.join(["wardround-sim", *map(path_text, sys.argv[1:])]),
            )
            evidence = run_study(loaded, run_id, settings, progress.listener())
            progress.stage("Writing the report")
            with collection_paused():
                from wardround_simulation.report.report import write_report
                from wardround_simulation.report.tensorboard import write_tensorboard

            write_report(out, evidence)
            write_tensorboard(out, evidence.curve, evidence.metrics, evidence.series, evidence.samples)
            finish(out, evidence)
    _show_result(dict(evidence.result), out, as_json)


@app.command(
    epilog="Example: wardround-sim compare studies/lidc.toml --data DIR --folds DIR/folds.csv --epsilon inf,8,3,1"
)
def compare(
    study: StudyArgument = None,
    data: DataOption = None,
    sites: SitesOption = None,
    test_data: TestDataOption = None,
    folds: Annotated[
        Path | None,
        typer.Option(
            "--folds", metavar="CSV", help="CSV file with patient_id and a column of fold numbers for each split."
        ),
    ] = None,
    epsilon: Annotated[
        str, typer.Option("--epsilon", metavar="LIST", help="Comma-separated values; inf means no privacy.")
    ] = "inf,8,3,1",
    settings: Annotated[
        str, typer.Option("--settings", metavar="LIST", help="Comma-separated settings to train.")
    ] = "federated,pooled,alone",
    draws: Annotated[
        int, typer.Option(min=1, metavar="N", help="Repetitions of each fold with new samples and noise.")
    ] = 3,
    out: OutOption = None,
    set_: SetOption = None,
    processes: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Parallel processes; default: one per core.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare training alone, pooled and federated at each epsilon, over folds by patient. Continues if interrupted."""
    from wardround.study.load import load_study
    from wardround.study.ready_studies import ready_study
    from wardround.tasks.registry import commands_of

    if data is None:
        raise UsageError("--data is missing: give the folder with the data")
    loaded = load_study(study or ready_study("lidc"), tuple(set_ or ()))
    task = loaded.study.task
    compared_by = commands_of(task).compare
    if compared_by is None:
        raise UsageError(f"compare does not support the task {task} of the study {loaded.study.name}")
    epsilons = _epsilons(epsilon)
    chosen_settings = _settings(settings)
    out = out or Path("runs") / f"compare-{loaded.study.name}"
    from wardround_simulation.cli.progress import RunProgress
    from wardround_simulation.run import preflight

    preflight.check_out(out, loaded, data, test_data)
    material = preflight.survey(loaded, data, test_data, sites)
    with RunProgress(literal_console(stderr=True), 0, quiet=as_json) as progress, contextlib.ExitStack() as claim:
        progress.stage("Preparing the hospitals' data")
        from wardround_simulation.compare import compare as comparison
        from wardround_simulation.run.hospitals import check_disjoint, check_federation, prepare_hospitals

        chosen = comparison.read_folds(folds) if folds else None
        claim.enter_context(preflight.claimed(out, loaded, data, test_data))
        hospitals = prepare_hospitals(material.train, loaded, out / SITES, progress.ingest)
        check_federation(loaded, data, hospitals)
        tests = prepare_hospitals(material.test, loaded, out / TEST_SITES, progress.ingest)
        if test_data:
            check_disjoint(hospitals, tests, test_data)
        folders = {hospital.name: hospital.folder for hospital in hospitals}
        test_folders = {hospital.name: hospital.folder for hospital in tests}
        if chosen is not None:
            comparison.check_folds(chosen, required(folds, "--folds"), folders)
        else:
            chosen = comparison.holdout_folds(loaded, folders)
        if compared_by == "methods":
            if test_data is not None:
                raise UsageError(f"--test-data: compare does not support an external test set for {task}; leave it out")
            progress.stage("Training at each epsilon and testing every fold with every method")
            from wardround_simulation.compare import methods

            rows = methods.compare_methods(
                loaded, folders, chosen, epsilons, draws, out, processes or os.cpu_count() or 1, progress.pieces
            )
            if as_json:
                print(json.dumps(rows))
            else:
                literal_console().print(methods.methods_table(loaded, rows))
            return
        progress.stage("Computing features, then training alone, pooled and federated")
        rows = comparison.compare(
            loaded,
            folders,
            test_folders,
            chosen,
            epsilons,
            draws,
            out,
            processes or os.cpu_count() or 1,
            chosen_settings,
            progress.pieces,
        )
        progress.stage("Drawing the comparison")
        from wardround_simulation.compare.by_hospital import hospital_table
        from wardround_simulation.compare.report import comparison_table, write_comparison

        notes = list(dict.fromkeys(note for hospital in hospitals for note in hospital.report.quality.notes))
        page = write_comparison(out, rows, loaded, notes)
    if as_json:
        print(json.dumps(rows))
        return
    literal_console().print(comparison_table(rows))
    literal_console().print(hospital_table(rows))
    print(f"Report: {page}")


@app.command(epilog="Example: wardround-sim phantom hospitals --sites 5 --patients 40")
def phantom(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new or empty folder.")],
    sites: Annotated[int, typer.Option(min=1, metavar="N", help="Hospitals.")] = PHANTOM_SITES,
    patients: Annotated[
        int,
        typer.Option(min=1, metavar="N", help="Patients of an average hospital; hospitals with images differ in size."),
    ] = PHANTOM_PATIENTS,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="The same seed gives the same files.")] = PHANTOM_SEED,
    records: Annotated[
        bool, typer.Option("--records", help="Write tables of records instead: simulated stays in intensive care.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Write phantom hospitals: chest-CT-like DICOM series with marked nodules, or tables of patients' records.

    They hold no data of any patient.
    """
    from wardround_simulation.cli.progress import RunProgress

    require_writable(folder)
    with RunProgress(literal_console(stderr=True), 0, quiet=as_json) as progress, writing(folder):
        progress.stage("Writing phantom hospitals")
        if records:
            from wardround_simulation.stays.hospitals import write_simulated_hospitals

            write_simulated_hospitals(folder, sites, patients, seed, progress.pieces)
        else:
            from wardround_simulation.phantoms.dicom import write_phantom_hospitals

            write_phantom_hospitals(folder, sites, patients, seed, progress.pieces)
    if as_json:
        print(json.dumps({"folder": str(folder), "sites": sites, "patients": patients, "seed": seed}))
    else:
        print(f"{count_text(sites, 'hospital')} in {folder}")


@app.command(epilog="Example: wardround-sim attack runs/demo")
def attack(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="The --out folder of a finished run.")],
    seeds: Annotated[int, typer.Option(min=1, metavar="N", help="Number of audits with planted patients.")] = 5,
    canaries: Annotated[int, typer.Option(min=50, max=5000, metavar="N", help="Planted patients in each audit.")] = 500,
    show_images: Annotated[
        bool,
        typer.Option(
            "--show-images",
            help="Show rebuilt images in the report. Phantoms are always shown, patients only with this option.",
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Test a finished run's privacy promise: named checks, planted patients, membership, gradient inversion."""
    from wardround_simulation.cli.progress import RunProgress

    with RunProgress(literal_console(stderr=True), 0, quiet=as_json) as progress:
        progress.stage("Reading the run")
        from wardround_simulation.attack.report import attack_table
        from wardround_simulation.attack.run import attack_folder, write_attack
        from wardround_simulation.run.preflight import check_outside_data

        check_outside_data(folder, folder)
        result, run = attack_folder(
            folder, seeds=seeds, canaries=canaries, stage=progress.stage, pieces=progress.pieces
        )
        report = write_attack(run, result, show_images)
    if as_json:
        print(json.dumps(result.to_json()))
    else:
        literal_console().print(attack_table(result))
        print(f"Report: {report}#attacks")
    if result.verdict == "FAIL":
        raise typer.Exit(1)


app.add_typer(models.app)
app.add_typer(federation.app)


def _epsilons(text: str) -> list[float]:
    out: list[float] = []
    for part in text.split(","):
        try:
            value = float(part)
        except ValueError:
            raise UsageError(
                f"--epsilon {text}: {part.strip() or 'nothing'} is not a number; write for example inf,8,3,1"
            ) from None
        if not value > 0:
            raise UsageError(f"--epsilon {text}: each value must be above 0")
        if value not in out:
            out.append(value)
    return out


def _settings(text: str) -> tuple[str, ...]:
    known = ("federated", "pooled", "alone")
    chosen = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    for part in chosen:
        if part not in known:
            raise UsageError(f"--settings {text}: {part or 'nothing'} is not a setting; choose from {', '.join(known)}")
    return chosen


def _show_result(result: dict, out: Path, as_json: bool, remark: str = "") -> None:
    if as_json:
        print(json.dumps(result))
        return
    from wardround_simulation.cli.result_table import result_table

    console = literal_console()
    console.print(result_table(result))
    print(f"Report: {out / 'report.html'}")
    if (out / EXAMPLE_PAGE).is_file():
        print(f"One decision, explained: {out / EXAMPLE_PAGE}")
    if remark:
        print(remark)


def main() -> NoReturn:
    """Entry point: every error on purpose becomes one line and its exit code."""
    run_program(
        app,
        "wardround-sim",
        stopped="stopped; the same command continues the run",
        full_disk="the disk is full; free some space or choose another --out, then run the same command again",
    )


if __name__ == "__main__":
    main()
