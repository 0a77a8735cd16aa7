"""`wardround-sim run`: one federated run on this machine, from a data folder to a report.

    OUT/
        run.json             the run's study and data, written first so that another study is refused (preflight.py)
        sites/NAME/          each hospital's folder, with the layout of a real site's (hospitals.py)
        checkpoints/  metrics.jsonl   written by the server's loop (wardround_server.rounds.loop)
        model.safetensors  result.json  report.html  tensorboard/
        log/                 output of Flower and Ray

The same command on the same folder continues at the next round; for a finished run it shows the result again.
"""

from __future__ import annotations

import functools
import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from wardround.accounting import Epsilon, spent_exactly
from wardround.errors import RoundError, UsageError, WardroundError
from wardround.metrics.noised_auc import ScoreHistogram
from wardround.networks.build import initial_network, start_weights
from wardround.networks.fingerprint import architecture_sha256
from wardround.networks.weights import check_personalisation, load_weights, trained_parameters
from wardround.storage.checkpoint import save_checkpoint
from wardround.storage.json_numbers import json_number
from wardround.study.load import Study
from wardround.tasks.assessment import Assessed, AtEnd, ReportSection
from wardround.tasks.registry import assess_part, commands_of, release_part
from wardround.wire.protocol import TRAIN
from wardround_client.ledger.ledger import Ledger
from wardround_client.privacy.plan import plan_from_study
from wardround_client.rounds.evaluation import released_counts
from wardround_client.rounds.training import REPLIES_KEPT
from wardround_client.site.paths import COHORT, LEDGER_FILE
from wardround_client.site.site import Weights
from wardround_client.sources.cohort import AnyRows
from wardround_client.sources.images.folder.layout import SiteSource
from wardround_client.sources.registry import source_of
from wardround_client.training.rows import training_rows
from wardround_client.training.train import plan_speed
from wardround_server.rounds.evaluation import SitesExchange, federated_test
from wardround_server.rounds.loop import KEPT_CHECKPOINTS, RoundRecord, RunOutcome, run_rounds
from wardround_server.runs.paths import METRICS_FILE, MODEL_FILE, RESULT_FILE
from wardround_server.sites.ledger_heads import LedgerHeads
from wardround_simulation.engine import in_process
from wardround_simulation.engine.assessment import InProcessTrainer, other_sites, sites_of
from wardround_simulation.engine.flower import with_flower
from wardround_simulation.engine.in_process import Hospital
from wardround_simulation.report.evidence import RunEvidence, SiteQuality
from wardround_simulation.run.hospitals import (
    Prepared,
    check_disjoint,
    check_federation,
    not_used,
    prepare_hospitals,
    settle_rules,
)
from wardround_simulation.run.paths import LOG, SITES, TEST_SITES
from wardround_simulation.run.personal import personal_sections, personalise_all
from wardround_simulation.run.preflight import Material, check_disk, write_json
from wardround_simulation.run.subgroups import group_sections, group_tables, tables_to_json

RESULT_SCHEMA = 1
LOGS_BYTES = 32 * 2**20  # the report, TensorBoard's files and the logs of Flower and Ray


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Settings from the command line. None of them affects privacy."""

    material: Material
    out: Path
    device: str
    ray_address: str | None
    phantoms: bool
    show_images: bool
    baselines: bool
    command: str


@dataclass(frozen=True, kw_only=True)
class Listener:
    """Callbacks that show progress to the user; each may do nothing."""

    ingest: Callable[[str, int, int], None]
    stage: Callable[[str], None]
    round: Callable[[RoundRecord, str], None]
    warn: Callable[[str], None]


def run(study: Study, run_id: str, settings: RunSettings, listener: Listener) -> RunEvidence:
    """Prepare the data, train and test in a claimed folder; return the evidence for the report.

    Raises:
        WardroundError: With a one-line message. The folder is left in a state from which the run can be continued.
    """
    started = time.monotonic()
    out, material = settings.out, settings.material
    device = _device(settings.device)
    network = initial_network(study)
    check_personalisation(network, study)
    architecture = architecture_sha256(network)
    start = start_weights(study)
    check_disk(out, disk_need_bytes(network, start, len(material.train)))
    listener.stage("Preparing the hospitals' data")
    hospitals = prepare_hospitals(material.train, study, out / SITES, listener.ingest)
    for hospital in hospitals:
        if (line := not_used(hospital, study)) is not None:
            listener.warn(line)
    check_federation(study, material.data, hospitals)
    outside = prepare_hospitals(material.test, study, out / TEST_SITES, listener.ingest)
    if material.test_data is not None:
        check_disjoint(hospitals, outside, material.test_data)
    ingested_s = time.monotonic() - started
    threads = max(1, (os.cpu_count() or 1) // min(len(hospitals), os.cpu_count() or 1))
    for hospital in hospitals:
        settle_rules(hospital, study, device, threads)

    opened = in_process.open_hospitals({h.name: h.folder for h in hospitals}, study)
    assessment = assess_part(study.study.task).assessment_of(
        study, sites_of(study, opened), out, InProcessTrainer(opened)
    )
    assessment.after_round(0, start)

    def on_round(record: RoundRecord) -> None:
        listener.round(record, assessment.after_round(record.round, record.weights))

    def body(exchange: SitesExchange) -> tuple[RunOutcome, dict[str, Any] | None]:
        listener.stage(f"Training {study.study.rounds} rounds at {len(hospitals)} hospitals")
        outcome = run_rounds(study, run_id, architecture, start, exchange, out, on_round, listener.warn)
        heads = LedgerHeads(out)
        return outcome, federated_test(study, run_id, architecture, outcome.weights, exchange, ledgers=heads)

    trained_from = time.monotonic()
    listener.stage("Starting the simulation engine")
    folders = [hospital.folder for hospital in hospitals]
    try:
        outcome, released = with_flower(
            folders,
            body,
            device=device,
            ray_address=settings.ray_address,
            log_folder=out / LOG,
            gpu_step=functools.partial(dummy_step, study, device),
        )
    except RoundError as error:
        raise RoundError(f"{error}. The log of each site: {out}/sites/NAME/site.log") from None
    training_s = time.monotonic() - trained_from

    listener.stage("Testing")
    show_images = settings.phantoms or settings.show_images
    end = AtEnd(
        weights=outcome.weights,
        released=released,
        others=other_sites(study, in_process.open_hospitals({h.name: h.folder for h in outside}, study)),
        baselines=settings.baselines,
        show_images=show_images,
        stage=listener.stage,
        site_counts=site_counts(study, hospitals, run_id, outcome.weights),
    )
    assessed = assessment.at_end(end)
    if study.personalisation is not None:
        listener.stage("Personalising the model at each hospital")
    at_sites = {hospital.name: hospital.folder for hospital in hospitals}
    personalised = personalise_all(study, run_id, at_sites, assessed.weights, architecture, listener.warn)
    result = result_of(study, hospitals, outcome, assessed, run_id, architecture)
    for name, own in personalised.items():
        result["sites"][name]["personalised"] = own
    groups = group_tables(study, opened, assessed.predictions)
    if groups:
        result["groups"] = tables_to_json(groups)
    if released is not None:
        result["federated_test"] = released
    result["phantoms"] = settings.phantoms
    result["finished_at"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    result["seconds"] = {
        "ingest": round(ingested_s, 1),
        "training": round(training_s, 1),
        "rounds": round(outcome.seconds, 1),
        "whole": round(time.monotonic() - started, 1),
    }
    save_model(out, study, result, network, assessed.weights, architecture)
    example: Sequence[ReportSection] = ()
    if settings.phantoms and commands_of(study.study.task).explain:
        listener.stage("Predicting and explaining one held-out image")
        from wardround_simulation.run.example import write_example  # loads what only this needs, onnx for one

        example = write_example(out, study, result, cast(SiteSource, material.train[0]))
    return RunEvidence(
        study=study,
        result=result,
        asked=assessed.asked,
        headline=assessed.headline,
        curve=assessed.curve,
        predictions=assessed.predictions,
        sections=[*assessed.sections, *example, *group_sections(groups), *personal_sections(personalised)],
        series=assessed.series,
        samples=assessed.samples if settings.phantoms else {},
        metrics=read_metrics(out),
        montages=montages_of(study, opened) if show_images else None,
        quality={h.name: quality_of(h, study) for h in hospitals},
        versions=versions(),
        command=settings.command,
        architecture_sha256=architecture,
        notes=notes_of(study, hospitals, settings),
    )


def site_counts(
    study: Study, hospitals: Sequence[Prepared], run_id: str, weights: Mapping[str, np.ndarray]
) -> dict[str, ScoreHistogram]:
    """Return the noised counts that each site released for these weights, from its own files.

    Sites that have none are left out.
    """
    found = {hospital.name: released_counts(hospital.folder, study, run_id, weights) for hospital in hospitals}
    return {name: counts for name, counts in found.items() if counts is not None}


def result_of(
    study: Study,
    hospitals: list[Prepared],
    outcome: RunOutcome,
    assessed: Assessed,
    run_id: str,
    architecture: str,
) -> dict[str, Any]:
    """Return the content of result.json, schema 1. Epsilons come from the ledgers' events, never from the study."""
    plan = plan_from_study(study)
    sites: dict[str, Any] = {}
    largest: Epsilon | None = None
    steps = 0
    for hospital in hospitals:
        ledger = Ledger(hospital.folder / LEDGER_FILE)
        # Epsilon of the training patients. Held-out patients are different people; what is released about them is
        # reported separately.
        epsilon, events = ledger.spent(study.privacy.delta, run_id, TRAIN), ledger.events(run_id, TRAIN)
        exact = spent_exactly(events, study.privacy.delta)
        head = outcome.ledger_heads.get(hospital.name)
        ledger.close()
        site_steps = sum(event.releases for event in events)
        steps = max(steps, site_steps)
        largest = epsilon if largest is None or epsilon.value >= largest.value else largest
        sites[hospital.name] = {
            "epsilon": json_number(epsilon.value),
            "epsilon_exact": json_number(exact.value) if exact else None,
            "steps": site_steps,
            "ledger": asdict(head) if head else None,
            "patients": training_patients(hospital, study),
            "test": assessed.site_tests.get(hospital.name),
        }
    if largest is None:
        raise WardroundError("the run has no hospital and therefore no result")
    return {
        "schema": RESULT_SCHEMA,
        "status": "finished",
        "run_id": run_id,
        "study": study.study.name,
        "study_sha256": study.sha256(),
        "architecture_sha256": architecture,
        "rounds_completed": outcome.rounds_completed,
        "missing": [{"round": m.round, "site": m.site, "code": m.code} for m in outcome.missing],
        "privacy": {
            **largest.to_json(),
            "epsilon_promised": json_number(study.privacy.epsilon),
            "noise_multiplier": plan.noise_multiplier,
            "sampling_rate": plan.sampling_rate,
            "max_grad_norm": json_number(plan.max_grad_norm),
            "steps": steps,
        },
        "sites": sites,
        **assessed.result,
        "bytes": {"up": outcome.bytes_up, "down": outcome.bytes_down},
    }


def training_patients(hospital: Prepared, study: Study) -> int:
    from wardround_client.sources.cohort import open_cohort

    cohort = open_cohort(hospital.folder / COHORT)
    return int(len(np.unique(cohort.patient_N[training_rows(study, cohort)])))


def save_model(
    out: Path, study: Study, result: Mapping[str, Any], network: nn.Module, weights: Weights, architecture: str
) -> None:
    """Write the whole network with the released weights and a manifest to one file.

    Another study can name this file in `model.init`.
    """
    load_weights(trained_parameters(network, study), weights)
    tensors = {name: tensor.detach().cpu().numpy().copy() for name, tensor in network.state_dict().items()}
    manifest = {
        "kind": "model",
        "study": study.study.name,
        "study_sha256": study.sha256(),
        "architecture_sha256": architecture,
        "trainable": study.model.trainable,
        **({"released": result["released"]} if "released" in result else {}),
        **release_part(study.study.task).manifest(study),
        "privacy": result["privacy"],
    }
    save_checkpoint(out / MODEL_FILE, tensors, manifest)


def finish(out: Path, evidence: RunEvidence) -> None:
    """Write result.json. Must come after all other files: its presence marks the run as finished."""
    write_json(out / RESULT_FILE, dict(evidence.result))


def dummy_step(study: Study, device: str) -> None:
    """Run one real clipped step on synthetic images, to measure a site's GPU memory in a separate process."""
    network = initial_network(study)
    plan_speed(network, study, plan_from_study(study), torch.device(device))


def _device(asked: str) -> str:
    """Return "cpu" or "cuda". Raises `UsageError` if "cuda" was requested and torch finds no GPU."""
    found = torch.cuda.is_available()
    if asked == "cuda" and not found:
        raise UsageError("--device cuda: torch finds no CUDA GPU; use --device cpu or fix the GPU driver")
    return "cuda" if found and asked != "cpu" else "cpu"


def disk_need_bytes(network: nn.Module, start: Mapping[str, np.ndarray], sites: int) -> int:
    """Estimate, rather too high than too low, how many bytes training will write.

    The estimate covers checkpoints with their moments, each site's kept replies, the model, the report and logs. It
    leaves out the images, whose space `ingest` checks, because their number is known there.
    """
    travelling = sum(array.nbytes for array in start.values())
    whole = sum(tensor.nbytes for tensor in network.state_dict().values())
    return 4 * (KEPT_CHECKPOINTS + 1) * travelling + sites * (REPLIES_KEPT + 2) * travelling + 2 * whole + LOGS_BYTES


def read_metrics(out: Path) -> list[dict[str, Any]]:
    from wardround_server.runs.metrics_log import read_lines

    return read_lines(out / METRICS_FILE)


def montages_of(study: Study, opened: Sequence[Hospital]) -> dict[str, np.ndarray] | None:
    """Return up to 12 images of each hospital, spread evenly over its cohort; None where rows are no images."""
    if not source_of(study.data).SHOWS_IMAGES:
        return None
    return {hospital.name: _spread(hospital.cohort.values_N) for hospital in opened}


def _spread(images_NCHW: AnyRows) -> np.ndarray:
    rows = np.unique(np.linspace(0, len(images_NCHW) - 1, 12).astype(int))
    return np.array(images_NCHW[rows])


def quality_of(hospital: Prepared, study: Study) -> SiteQuality:
    quality = hospital.report.quality
    left_out = {code: count for code, count in quality.remarks.items() if code in source_of(study.data).LEFT_OUT}
    return SiteQuality(accepted=quality.rows, quarantined=dict(quality.quarantined), left_out=left_out)


def notes_of(study: Study, hospitals: list[Prepared], settings: RunSettings) -> list[str]:
    """Return the remarks that the report shows next to the figures: what they cover and what they do not."""
    notes = []
    if settings.phantoms:
        notes.append(
            "These hospitals are generated phantoms: the figures show that the system works, "
            "but not how well it works on patients."
        )
    notes += dict.fromkeys(note for hospital in hospitals for note in hospital.report.quality.notes)
    if math.isfinite(study.privacy.epsilon):
        notes.append(
            "The exact test figures of this report never left this machine and are not covered by epsilon; "
            "a real site would release figures through its ledger, or none."
        )
    return notes


def versions() -> dict[str, str]:
    names = ("wardround", "flwr", "ray", "torch", "opacus", "pydicom", "numpy")
    return {"python": sys.version.split()[0], **{name: version(name) for name in names}}
