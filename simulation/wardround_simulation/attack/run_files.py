"""Read a finished run, as an attacker who has all its files can, and check the run by these files.

    replay        the ledgers' attempts, accounted for again, give the epsilon that result.json claims
    plan-kept     the ledgers' events have the noise and the sampling rate of the study's plan
    sent-noise    the replies on disk, minus the part explained by the patients' data, are as large as the noise
    sent-mean     the model of a round is the mean of its replies with public weights

The last two need replies and checkpoints of the last rounds. sent-noise also needs a step that is simple enough to be
undone, and sent-mean an aggregation that leaves the mean unchanged.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

from wardround.accounting import GaussianEvent, spent, spent_exactly
from wardround.errors import UsageError
from wardround.networks.build import initial_network
from wardround.networks.weights import load_weights, trained_parameters
from wardround.storage.checkpoint import load_checkpoint
from wardround.study.load import Study, study_from_json
from wardround.tasks.labelled.objective import loss_per_row, reads_features, trained_part
from wardround.text import epsilon_of
from wardround.wire.protocol import TRAIN
from wardround_client.clipping.engines import PatientBatch, clip_by_loop
from wardround_client.ledger.ledger import Attempt, Ledger
from wardround_client.privacy.plan import PrivacyPlan, plan_from_study
from wardround_client.site.paths import LEDGER_FILE, REPLIES
from wardround_client.site.site import ReplyFolder
from wardround_client.training.batches import material_of
from wardround_client.training.rows import training_rows
from wardround_client.training.steps import learning_rate
from wardround_server.rounds.aggregation import site_weight
from wardround_server.runs.paths import CHECKPOINTS, MODEL_FILE, RESULT_FILE, ROUND_CHECKPOINTS, STUDY_FILE
from wardround_simulation.attack.checks import FALSE_ALARM
from wardround_simulation.attack.system import Finding, Weights, passed
from wardround_simulation.engine import in_process
from wardround_simulation.engine.in_process import Hospital
from wardround_simulation.run.paths import CLAIM_FILE, SITES


@dataclass(frozen=True, kw_only=True)
class SiteRecord:
    """One site of a run: its ledger's attempts and events of the run's training, and the claims in result.json."""

    attempts: tuple[Attempt, ...]
    events: tuple[GaussianEvent, ...]
    claimed_epsilon: float
    claimed_steps: int


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """A finished run. `released` holds the released weights by name, limited to those that sites exchange."""

    folder: Path
    study: Study
    result: Mapping[str, Any]
    sites: Mapping[str, SiteRecord]
    released: Weights

    @property
    def phantoms(self) -> bool:
        """Whether the images are generated. True only if result.json states it explicitly."""
        return self.result.get("phantoms") is True


def read_run(folder: Path) -> RunRecord:
    """Read the files of a finished run.

    Raises:
        UsageError: If there is no run, it is not finished, or a file is missing or wrong (a one-line message).
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder; give the --out folder of a finished run")
    if not (folder / CLAIM_FILE).is_file():
        raise UsageError(f"{folder}: contains no run; give the --out folder of a finished run")
    result_path, study_path = folder / RESULT_FILE, folder / STUDY_FILE
    if not result_path.is_file():
        raise UsageError(f"{folder}: the run is not finished; run its `wardround-sim run` command again to continue it")
    try:
        result = json.loads(result_path.read_text(encoding="utf-8"))
        study = study_from_json(study_path.read_text(encoding="utf-8"), str(study_path))
        run_id, claims = str(result["run_id"]), dict(result["sites"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{folder}: result.json or study.json cannot be read ({type(error).__name__})") from None
    if result.get("status") != "finished" or result.get("study_sha256") != study.sha256():
        raise UsageError(f"{folder}: result.json is not that of a finished run of the study in study.json")
    tensors, _ = load_checkpoint(folder / MODEL_FILE)
    names = in_process.start_weights(study)
    if not names.keys() <= tensors.keys():
        raise UsageError(
            f"{folder}/model.safetensors: is not the model of this study; give the unchanged folder of the run"
        )
    sites = {}
    for name, claim in sorted(claims.items()):
        path = folder / SITES / name / LEDGER_FILE
        if not path.is_file():
            raise UsageError(f"{path}: the ledger is missing; give the complete folder of the run")
        ledger = Ledger(path)
        attempts = ledger.attempts(study.sha256(), run_id)
        sites[name] = SiteRecord(
            attempts=tuple(attempt for attempt in attempts if attempt.purpose == TRAIN),
            events=tuple(event for event in ledger.events(run_id, TRAIN) if isinstance(event, GaussianEvent)),
            claimed_epsilon=epsilon_of(claim["epsilon"]),
            claimed_steps=int(claim["steps"]),
        )
        ledger.close()
    return RunRecord(
        folder=folder, study=study, result=result, sites=sites, released={name: tensors[name] for name in names}
    )


def replay(study: Study, sites: Mapping[str, SiteRecord]) -> Finding:
    """Check the claimed epsilons: count every attempt and compute the cost of all steps at once.

    Each site's claim must equal this epsilon, which must not exceed the promise. The claim must also be at least the
    exact epsilon where a formula exists for it, which is independent of the accountant.
    """
    plan, faults, largest = plan_from_study(study), [], 0.0
    for name, site in sites.items():
        steps = sum(plan.local_steps for _ in site.attempts)
        event = GaussianEvent(noise_multiplier=plan.noise_multiplier, sampling_rate=plan.sampling_rate, steps=steps)
        replayed, exact = spent([event], study.privacy.delta), spent_exactly([event], study.privacy.delta)
        largest = max(largest, replayed.value)
        if not _same(site.claimed_epsilon, replayed.value):
            faults.append(
                f"{name} claims ε {site.claimed_epsilon:.3g}, but its {steps} steps cost {replayed.value:.3g}"
            )
        if site.claimed_steps != steps or sum(one.steps for one in site.events) != steps:
            faults.append(f"{name} claims {site.claimed_steps} steps, but {steps} were attempted")
        if exact is not None and site.claimed_epsilon < exact.value * (1 - 1e-6):
            faults.append(f"{name} claims less than the exact ε {exact.value:.3g}")
        if replayed.value > study.privacy.epsilon * (1 + 1e-9):
            faults.append(f"{name} spent ε {replayed.value:.3g}, more than was promised")
    shown = "∞" if math.isinf(largest) else f"{largest:.4g}"
    promised = "∞" if math.isinf(study.privacy.epsilon) else f"{study.privacy.epsilon:g}"
    rounds = sum(len(site.attempts) for site in sites.values())
    return Finding(
        name="replay",
        question="Does ε recomputed from all entries of the ledgers equal the ε that the run claims?",
        measured="; ".join(faults) if faults else f"ε {shown} from {rounds} rounds, computed per site",
        limit=f"equal to the claim, and at most ε {promised}",
        verdict=passed(not faults),
    )  # fmt: skip


def _same(claimed: float, counted: float) -> bool:
    return claimed == counted or math.isclose(claimed, counted, rel_tol=1e-9)


def plan_kept(record: RunRecord) -> Finding:
    """Check the noise and sampling rate of every event, and those in result.json, against the study's plan."""
    plan, faults = plan_from_study(record.study), []
    wanted = (plan.noise_multiplier, plan.sampling_rate)
    for name, site in record.sites.items():
        if any((event.noise_multiplier, event.sampling_rate) != wanted for event in site.events):
            faults.append(f"{name}'s ledger records a different noise or sampling rate")
    shown = record.result["privacy"]
    if (shown["noise_multiplier"], shown["sampling_rate"]) != wanted:
        faults.append(f"result.json contains σ {shown['noise_multiplier']:.4g}, q {shown['sampling_rate']:g}")
    return Finding(
        name="plan-kept",
        question="Did every hospital use the study's noise and sampling rate in this run?",
        measured="; ".join(faults) if faults else f"σ {wanted[0]:.4g}, q {wanted[1]:g} at {len(record.sites)} sites",
        limit=f"σ {wanted[0]:.4g}, q {wanted[1]:g}",
        verdict=passed(not faults),
    )


def sent_noise(record: RunRecord, hospitals: Iterable[Hospital]) -> Finding:
    """Check the noise in the messages that the hospitals sent in the last rounds.

    The noise is the message minus the part explained by the patients: the step is undone, and the clipped sum is
    recomputed one patient at a time. The size is tested by chi-squared at `FALSE_ALARM`, as in `noise_size`, and the
    noise of different rounds and sites must not be correlated.
    """
    study, plan = record.study, plan_from_study(record.study)
    asked = "Is the noise in the messages sent by this run's hospitals as strong as planned?"
    why = _not_undone(study, plan)
    residues = []
    if why is None:
        sent = _sent(record)
        for hospital in hospitals:
            for round_, before, reply in sent.get(hospital.name, ()):
                residues.append(_noise_in(study, hospital, round_, before, reply))
    if not residues:
        measured = why or "no message is kept together with the model before it"
        return Finding(name="sent-noise", question=asked, measured=measured, limit="–", verdict="does not apply")
    noise_RD = np.stack(residues)
    n, total = noise_RD.size, float(np.square(noise_RD).sum())
    chance = 2 * min(stats.chi2.sf(total, n), stats.chi2.cdf(total, n))
    links = np.corrcoef(noise_RD)[np.triu_indices(len(noise_RD), 1)] if len(noise_RD) > 1 else np.zeros(1)
    linked = float(np.abs(links).max())
    # Fisher's z of the correlation of two rows of D normal values, corrected for the number of pairs
    link_limit = math.tanh(
        stats.norm.isf(FALSE_ALARM / 2 / max(1, len(links))) / math.sqrt(max(1, noise_RD.shape[1] - 3))
    )
    reach = math.sqrt(stats.chi2.isf(FALSE_ALARM / 2, n) / n) - 1
    return Finding(
        name="sent-noise",
        question=asked,
        measured=f"{math.sqrt(total / n):.3f} of the planned size in {len(noise_RD)} messages ({n:,} values); "
        f"largest correlation of two messages {linked:.2f}",
        limit=f"1 within {reach:.0%}; {link_limit:.2f}",
        verdict=passed(chance > FALSE_ALARM and linked < link_limit),
    )


def _not_undone(study: Study, plan: PrivacyPlan) -> str | None:
    """Return why a message cannot be taken apart into the patients' part and the noise; None if it can."""
    if not plan.private:
        return "there is no noise: ε = ∞"
    if not reads_features(study):
        return f"the patients' part is recomputed only for a head over features, not for {study.model.name}"
    if plan.sampling_rate != 1 or plan.images_per_patient is not None:
        return "the secret draw of patients or of their rows cannot be repeated"
    if plan.local_steps != 1 or study.training.optimizer != "sgd" or study.training.weight_decay != 0:
        return "a message is more than one plain step, which cannot be undone"
    return None


def sent_mean(record: RunRecord) -> Finding:
    """Check each stored round's model against the mean of its replies. Does not apply to FedAdam."""
    settings = record.study.aggregation
    asked = "Is the model of the last rounds the mean of the hospitals' messages, weighted by their public weights?"
    nothing = Finding(name="sent-mean", question=asked, measured="–", limit="–", verdict="does not apply")
    if settings.strategy == "fedadam":
        return replace(nothing, measured="FedAdam moves the model by more than the mean of the messages")
    after = _checkpoints(record)
    replies: dict[int, dict[str, Weights]] = {}
    for name, entries in _sent(record).items():
        for round_, _, reply in entries:
            replies.setdefault(round_, {})[name] = reply
    missing = {(int(entry["round"]), str(entry["site"])) for entry in record.result.get("missing") or ()}
    gaps = []
    for round_, by_site in replies.items():
        expected = {name for name in record.sites if (round_, name) not in missing}
        if round_ not in after or set(by_site) != expected:
            continue
        weight = {name: site_weight(settings, name) for name in by_site}
        for key, array in after[round_].items():
            mean = sum(weight[name] / sum(weight.values()) * by_site[name][key].astype(np.float64) for name in by_site)
            gaps.append(float(np.abs(mean - array).max()) / (1e-6 + float(np.abs(array).max())))
    if not gaps:
        return replace(nothing, measured="no round is kept with all its messages and the model after it")
    return Finding(
        name="sent-mean",
        question=asked,
        measured=f"largest deviation {max(gaps):.1e} of the largest weight",
        limit="1.0e-05",
        verdict=passed(max(gaps) <= 1e-5),
    )


def _checkpoints(record: RunRecord) -> dict[int, Weights]:
    """Return round -> global weights after it, for the rounds whose checkpoints still exist."""
    found = {}
    for path in sorted((record.folder / CHECKPOINTS).glob(ROUND_CHECKPOINTS)):
        tensors, manifest = load_checkpoint(path)
        found[int(manifest["round"])] = {
            name.removeprefix("weights/"): array for name, array in tensors.items() if name.startswith("weights/")
        }
    return found


def _sent(record: RunRecord) -> dict[str, list[tuple[int, Weights, Weights]]]:
    """Return site -> (round, weights received, weights sent) for settled rounds whose files still exist."""
    after = _checkpoints(record)
    sent: dict[str, list[tuple[int, Weights, Weights]]] = {}
    for name, site in record.sites.items():
        replies = ReplyFolder(record.folder / SITES / name / REPLIES)
        for attempt in site.attempts:
            if attempt.reply_sha256 is None or attempt.id not in replies or attempt.round - 1 not in after:
                continue
            sent.setdefault(name, []).append((attempt.round, after[attempt.round - 1], replies[attempt.id]))
    return sent


def _noise_in(study: Study, hospital: Hospital, round_: int, before: Weights, reply: Weights) -> np.ndarray:
    """Return the noise of one message in units of sigma C, (D,): undo the step and subtract the patients' part."""
    plan, network = plan_from_study(study), initial_network(study)
    parameters = trained_parameters(network, study)
    load_weights(parameters, before)
    part = trained_part(network, study)
    local = {name.removeprefix("head."): parameter for name, parameter in parameters.items()}
    rows_N = training_rows(study, hospital.cohort)
    index = material_of(hospital.inputs_N, hospital.cohort.labels_N, hospital.cohort.patient_N, rows_N).index
    batch = PatientBatch(
        inputs_N=torch.from_numpy(np.array(hospital.inputs_N[index.rows_N])),
        labels_N=torch.from_numpy(hospital.cohort.labels_N[index.rows_N].astype(np.int64)),
        start_U1=torch.from_numpy(index.start_P1),
    )
    clipped = clip_by_loop(part, local, batch, loss_per_row, plan.max_grad_norm).gradients
    rate = learning_rate(study, plan, sum(p.numel() for p in parameters.values()), round_)
    pieces = []
    for name in parameters:
        gradient = (np.float64(before[name]) - reply[name]) / rate
        released = gradient * plan.expected_patients  # FedProx's pull to the start is zero in the only step of a round
        pieces.append((released - clipped[name.removeprefix("head.")].numpy()).ravel())
    return np.concatenate(pieces) / (plan.noise_multiplier * plan.max_grad_norm)
