"""Personalisation at one site: train a released model further on the site's own patients, and keep the result there.

The released weights are treated like those of a broadcast: admission checks study, architecture, names and shapes. The
plan, sampler, clipping engines, noise and training loop are those of a round of the derived study
(`wardround.study.personal`). The budget is part of the study's hold, which was made before the first round read an
image. One attempt is one event in the ledger, durable before training starts. The model is on disk and settled before
it is returned; if it is requested again, the site returns the same model and charges nothing.

The model is never sent: no message asks for it, and it is not among the replies.
"""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from wardround.accounting import Epsilon, spent
from wardround.errors import LedgerError, PolicyRefusal, UsageError, WardroundError
from wardround.networks.build import initial_network
from wardround.networks.weights import load_weights, trained_parameters, weights_of
from wardround.records.audit_events import ModelPersonalised
from wardround.storage.checkpoint import load_checkpoint, save_checkpoint
from wardround.storage.folders import make_folder
from wardround.study.load import Study
from wardround.study.personal import personal_study
from wardround.tasks.registry import objective_part
from wardround.wire.evaluation import evaluation_round
from wardround.wire.packets import Broadcast, weights_sha256
from wardround.wire.protocol import PERSONALISE, TRAIN
from wardround_client.rounds import training
from wardround_client.rounds.training import Admitted
from wardround_client.site.site import Site, Weights
from wardround_client.training.batches import Material
from wardround_client.training.features import compute_features
from wardround_client.training.train import train

MODEL_FILE = "model.safetensors"
RELEASED_FILE = "released.safetensors"  # the weights that the server sent for the federated test

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PersonalModel:
    """A personalised model: all tensors of its network by name, and the folder at the site that has it.

    `epsilon` is what the personalisation of this run cost, lost attempts included, and `together` what it cost with the
    rounds of training, in which the same patients took part. `again` means that the model was trained earlier.
    """

    tensors: Weights
    folder: Path
    epsilon: Epsilon
    together: Epsilon
    again: bool


def release_question(study: Study, run: str, weights: Weights, architecture_sha256: str) -> Broadcast:
    """Return released weights in the form of a broadcast, which is how a site checks them.

    Args:
        study: The study that trained them.
        run: The name of its run.
        weights: The exchanged parameters, float32 by name.
        architecture_sha256: The hash of the network's architecture.
    """
    return Broadcast(
        study_sha256=study.sha256(),
        run_id=run,
        round=evaluation_round(study),
        weights=weights,
        architecture_sha256=architecture_sha256,
    )


def personalise(question: Broadcast, site: Site) -> PersonalModel:
    """Train the released weights of `question` further on this site's patients.

    Raises:
        PolicyRefusal, BudgetRefusal, WireError: The study does not ask for it, this site took no part in the run, the
            weights do not fit, other weights of this run were personalised before, or no attempt is left.
        WardroundError: Something failed at this site. An attempt that was begun stays charged.
    """
    study = site.study_of(question.study_sha256)
    personal, folder = personal_study(study), site.personal
    if personal is None or folder is None:
        raise PolicyRefusal("personalisation_not_asked", "the study has no section [personalisation]")
    if not any((hold.study, hold.run) == (question.study_sha256, question.run_id) for hold in site.ledger.holds()):
        raise PolicyRefusal(
            "run_unknown", f"this site took no part in the run {question.run_id}, so it holds no budget for its model"
        )
    training.admit(question, site, rounds=range(evaluation_round(study), evaluation_round(study) + 1))
    admitted = _admitted(personal, site)
    with site.exclusive():
        site = site.with_current_rules()
        site.study_of(question.study_sha256)  # the approval may have been revoked during the wait
        return _settled_or_new(question, study, admitted, site, folder / question.study_sha256 / question.run_id)


def keep_released(question: Broadcast, study: Study, site: Site) -> None:
    """Keep the weights that the server sent for the federated test, which are the released ones.

    With them a site can personalise the model before it receives it as a folder. Does nothing if the study asks for no
    personalisation. A fault of the disk is logged and does not stop the round.
    """
    if study.personalisation is None or site.personal is None:
        return
    folder = site.personal / question.study_sha256 / question.run_id
    try:
        make_folder(folder)
        manifest = {"kind": "released-weights", "architecture_sha256": question.architecture_sha256}
        save_checkpoint(folder / RELEASED_FILE, question.weights, manifest)
    except (OSError, WardroundError) as error:
        log.warning("the released weights were not kept: %s; use the exported model to personalise it", error)


def kept_question(study: Study, folder: Path, run: str | None = None) -> Broadcast:
    """Return the released weights that `keep_released` kept, of the only run of a study or of the run named.

    Args:
        study: The study.
        folder: The site's folder for personalised models (`Site.personal`).
        run: The run; needed if several runs of the study have released weights here.

    Raises:
        UsageError: There are none, or those of several runs and none is named.
    """
    found = {path.parent.name: path for path in (folder / study.sha256()).glob(f"*/{RELEASED_FILE}")}
    if run is None and len(found) == 1:
        (run,) = found
    if run not in found:
        known = f"known runs: {', '.join(sorted(found))}" if found else "this study sent none; give an exported model"
        raise UsageError(f"{study.sha256()[:12]}: no released weights of such a run at this site; {known}")
    weights, manifest = load_checkpoint(found[run])
    return release_question(study, run, weights, str(manifest.get("architecture_sha256")))


def released_network(study: Study, weights: Weights) -> nn.Module:
    """Return the study's network, on the CPU, with these exchanged parameters."""
    network = initial_network(study)
    load_weights(trained_parameters(network, study), weights)
    return network


def with_tensors(study: Study, tensors: Weights) -> nn.Module:
    """Return the study's network, on the CPU, with all the tensors of a personalised model."""
    network = initial_network(study)
    state = network.state_dict()
    load_weights({name: nn.Parameter(tensor, requires_grad=False) for name, tensor in state.items()}, tensors)
    return network


def _admitted(personal: Study, site: Site) -> Admitted:
    admitted = site.admitted.get(personal.sha256())
    if not isinstance(admitted, Admitted):
        admitted = training.open_study(personal, site)
        site.admitted[personal.sha256()] = admitted
    return admitted


def _settled_or_new(question: Broadcast, study: Study, admitted: Admitted, site: Site, folder: Path) -> PersonalModel:
    study_sha256, run, received = question.study_sha256, question.run_id, weights_sha256(question.weights)
    settled = site.ledger.settled(study_sha256, run, question.round, received, PERSONALISE)
    if settled is not None:
        tensors = _kept(folder, settled.reply_sha256)
    else:
        attempt = site.ledger.reserve(study_sha256, run, question.round, received, PERSONALISE, cap=site.cap)
        tensors = _trained(question, study, admitted, site)
        make_folder(folder)
        save_checkpoint(folder / MODEL_FILE, tensors, _manifest(question, study, attempt))
        site.ledger.settle(attempt, weights_sha256(tensors))
        log.info("run %s: the model was personalised; it stays in %s", run, folder)
    if site.record is not None:
        site.record(
            ModelPersonalised(
                study=study_sha256,
                run=run,
                sha256=weights_sha256(tensors),
                epsilon=site.ledger.spent(site.cap.delta),
                again=settled is not None,
            )
        )
    own = site.ledger.events(run, PERSONALISE)
    return PersonalModel(
        tensors=tensors,
        folder=folder,
        epsilon=spent(own, study.privacy.delta),
        together=spent([*own, *site.ledger.events(run, TRAIN)], study.privacy.delta),
        again=settled is not None,
    )


def _trained(question: Broadcast, study: Study, admitted: Admitted, site: Site) -> Weights:
    personal, network = admitted.study, released_network(study, question.weights).to(site.device)
    material = _material(site, study, personal, network)
    start = weights_of(trained_parameters(network, personal))
    train(personal, admitted.plan, network, start, material, 1, site.randomness, site.device, admitted.speed)
    tensors = {name: tensor.detach().cpu().numpy().copy() for name, tensor in network.state_dict().items()}
    if not all(np.isfinite(array).all() for array in tensors.values()):
        raise WardroundError("the personalisation diverged: its weights are not finite; the learning rate is too high")
    return tensors


def _material(site: Site, study: Study, personal: Study, network: nn.Module) -> Material:
    """Return what the personalisation reads: images, or the features that the released network computes from them.

    A site's material with features has those of the initial network. They are the released network's too if the study
    trained the head only.
    """
    task = objective_part(personal.study.task)
    if not task.reads_features(personal) or study.model.trainable == "head":
        return site.material_of(personal)
    images = site.material_of(study)
    features_ND, _ = compute_features(network, images.inputs_N, images.index.rows_N, site.device)
    return dataclasses.replace(images, inputs_N=features_ND)


def _kept(folder: Path, sha256: str | None) -> Weights:
    """Return the model of a settled attempt. Raises `WardroundError` if its file is gone or is not the settled one."""
    path = folder / MODEL_FILE
    if not path.is_file():
        raise PolicyRefusal("reply_gone", f"{path}: the personalised model was removed; it is not trained twice")
    tensors = load_checkpoint(path)[0]
    if weights_sha256(tensors) != sha256:
        raise LedgerError(f"{path}: differs from the model that the ledger records; restore it from a backup")
    return tensors


def _manifest(question: Broadcast, study: Study, attempt: int) -> dict[str, Any]:
    personal = study.personalisation
    return {
        "kind": "personalised-model",
        "study": study.study.name,
        "study_sha256": question.study_sha256,
        "run": question.run_id,
        "architecture_sha256": question.architecture_sha256,
        "trainable": personal.trainable if personal else None,
        "released_weights": weights_sha256(question.weights),
        "attempt": attempt,
        "stays": "at this site: trained on its patients alone; do not hand it over",
    }
