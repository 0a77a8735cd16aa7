"""The phases of a run, each executed by one Flower run that ends by itself: propose the study to the sites, or train.

A phase gets a `Federation` (the connected sites and the exchange with them) and a run's folder, and stores all of its
results in that folder. It can therefore be killed at any moment, and the next phase continues.
"""

from __future__ import annotations

import hashlib
import math
import subprocess
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from wardround.errors import ModelError, RoundError
from wardround.processes.spawn import ISOLATED_PYTHON
from wardround.storage.checkpoint import load_checkpoint, save_checkpoint
from wardround.storage.json_numbers import json_number
from wardround.study.load import Study
from wardround.tasks.registry import release_part
from wardround.wire.evaluation import SiteRelease
from wardround.wire.packets import Broadcast, SiteReply
from wardround_server.rounds.evaluation import SitesExchange, federated_test
from wardround_server.rounds.loop import RunOutcome, run_rounds
from wardround_server.runs.audit import RunRecord
from wardround_server.runs.folder import RunFolder, quorum, write_json
from wardround_server.runs.paths import MODEL_FILE, RESULT_FILE, START_FILE, STUDY_FILE
from wardround_server.sites.ledger_heads import LedgerHeads

ASK_LIMIT_S = 60.0
GATHER_LIMIT_S = 45.0  # a killed node is back after about a minute; a round does not wait much longer for one site
# Undecided sites may join a run during training: the first and the longest pause between two proposals to them.
ASK_AGAIN_SOON_S, ASK_AGAIN_S = 15.0, 300.0
LOOK_S = 1.0
START_LIMIT_S = 300.0
STOPPED = "the operator stopped the run"


class Federation(Protocol):
    """The interface of a phase to the sites."""

    def online(self) -> Mapping[str, int]:
        """Return name -> node id of the registered sites that are connected now."""

    def propose(self, study: Study, sites: Collection[str], limit_s: float) -> dict[str, str]:
        """Propose a study to the connected `sites`; return name -> decision or code within `limit_s` seconds."""

    def exchange(self, directory: Mapping[str, int | None]) -> SitesExchange:
        """Return the exchange with these sites (name -> node id; None for a site that is not connected)."""


def ask(run: RunFolder, federation: Federation) -> None:
    """Propose the run's study to all connected sites and store their replies."""
    with run.phase("propose"):
        study = run.study()
        RunRecord(run, study).decided_by_sites(federation.propose(study, federation.online().keys(), ASK_LIMIT_S))


def train(run: RunFolder, federation: Federation) -> None:
    """Train the run from its last checkpoint to the end with the sites that approved it, and write its result."""
    with run.phase("train"):
        if run.state() == "finished":  # the phase was started twice, and the first one completed the run
            return
        study = run.study()
        network, manifest = start_of(run, study)
        start = {name: network[name] for name in manifest["exchanged"]}
        architecture = manifest["architecture_sha256"]
        way, record = Gathering(run, federation, quorum(study)), RunRecord(run, study)
        heads = LedgerHeads(run.server)
        outcome = run_rounds(
            study, run.run_id, architecture, start, way, run.path, on_reply=record.replied, ledgers=heads
        )
        figures = federated_test(study, run.run_id, architecture, outcome.weights, way, record.released, heads)
        result = result_of(study, run.run_id, architecture, outcome, figures)
        released, choice = release_part(study.study.task).released_weights(figures, outcome.weights, start)
        result |= choice
        save_model(run.path / MODEL_FILE, network, released, study, result)
        record.finished(hashlib.sha256((run.path / MODEL_FILE).read_bytes()).hexdigest())
        write_json(run.path / RESULT_FILE, result)


class Gathering:
    """The exchange with the sites that approved the study.

    Before every request it waits a limited time until all of these sites are connected, since connections come and go
    between rounds. A site that is not connected by then is reported as unreachable.
    """

    def __init__(self, run: RunFolder, federation: Federation, needed: int) -> None:
        self._run = run
        self._federation = federation
        self._needed = needed
        # After a failed phase, propose again at once: the sites that approved so far may never reach the quorum.
        self._asked = -math.inf if run.problem() else time.monotonic()
        self._pause_s = ASK_AGAIN_SOON_S

    def __call__(self, broadcast: Broadcast, deadline_s: float) -> Iterator[SiteReply]:
        return self._federation.exchange(self._gather(deadline_s))(broadcast, deadline_s)

    def ask_for_figures(self, question: Broadcast, bins: int, deadline_s: float) -> Iterator[SiteRelease]:
        """Request the noised counts; see `rounds.evaluation`."""
        return self._federation.exchange(self._gather(deadline_s)).ask_for_figures(question, bins, deadline_s)

    def _gather(self, deadline_s: float) -> dict[str, int | None]:
        self._ask_again()
        began = time.monotonic()
        while True:
            if self._run.is_stopped:
                raise RoundError(STOPPED)
            approved, online = self._run.approved(), self._federation.online()
            directory = {site: online.get(site) for site in approved}
            there = sum(node is not None for node in directory.values())
            limit_s = GATHER_LIMIT_S if there >= self._needed else max(deadline_s, GATHER_LIMIT_S)
            if there == len(approved) or time.monotonic() - began > limit_s:
                return directory
            time.sleep(LOOK_S)

    def _ask_again(self) -> None:
        """Propose the study again to the undecided sites, at growing intervals between rounds: sites may join later."""
        if time.monotonic() - self._asked < self._pause_s:
            return
        decided = {site for site, said in self._run.approvals().items() if said.state in ("approved", "refused")}
        if undecided := self._federation.online().keys() - decided:
            study = self._run.study()
            RunRecord(self._run, study).decided_by_sites(self._federation.propose(study, undecided, ASK_LIMIT_S))
        self._asked, self._pause_s = time.monotonic(), min(2 * self._pause_s, ASK_AGAIN_S)


def start_of(run: RunFolder, study: Study) -> tuple[dict[str, np.ndarray], Mapping[str, Any]]:
    """Return the network before training and its manifest, made once per run.

    A separate process makes the network, so that this process never imports torch. Raises `ModelError` if it cannot be
    made.
    """
    path = run.path / START_FILE
    if not path.is_file():
        command = [*ISOLATED_PYTHON, "-m", "wardround.networks.initial_weights", str(run.path / STUDY_FILE), str(path)]
        _make_start(run, command)
    tensors, manifest = load_checkpoint(path)
    if manifest.get("kind") != "start" or manifest.get("study_sha256") != study.sha256():
        raise ModelError(f"{path}: are not the initial weights of this study; restore the run's folder from a backup")
    return tensors, manifest


def _make_start(run: RunFolder, command: list[str]) -> None:
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, encoding="utf-8", errors="replace"
    )
    ends = time.monotonic() + START_LIMIT_S
    try:
        while True:
            try:
                _, said = process.communicate(timeout=LOOK_S)
                break
            except subprocess.TimeoutExpired:
                if run.is_stopped:
                    raise RoundError(STOPPED) from None
                if time.monotonic() > ends:
                    why = f"it took longer than {START_LIMIT_S:.0f} s"
                    raise ModelError(f"the study's initial weights cannot be created: {why}") from None
    finally:
        process.kill()
        process.wait()
    if process.returncode != 0:
        why = (said.strip().splitlines() or ["no reason given"])[-1]
        raise ModelError(f"the study's initial weights cannot be created: {why}")


def result_of(
    study: Study, run_id: str, architecture: str, outcome: RunOutcome, figures: dict[str, Any] | None
) -> dict[str, Any]:
    """Return the content of result.json, schema 1.

    It contains only the facts that a server has in a real federation: no patient counts and no ledgers, but the last
    ledger head that each site reported.
    """
    privacy = study.privacy
    result = {
        "schema": 1,
        "status": "finished",
        "finished_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "run_id": run_id,
        "study": study.study.name,
        "study_sha256": study.sha256(),
        "architecture_sha256": architecture,
        "rounds_completed": outcome.rounds_completed,
        "missing": [asdict(one) for one in outcome.missing],
        "privacy": {
            "unit": "patient",
            "relation": "add or remove one",
            "epsilon_promised": json_number(privacy.epsilon),
            "delta": privacy.delta,
            "sampling_rate": privacy.sampling_rate,
            "max_grad_norm": json_number(privacy.max_grad_norm),
        },
        "sites": {
            site: {"ledger": asdict(outcome.ledger_heads[site]) if site in outcome.ledger_heads else None}
            for site in outcome.sites
        },
        "bytes": {"up": outcome.bytes_up, "down": outcome.bytes_down},
        "seconds": {"rounds": round(outcome.seconds, 1)},
    }
    return result if figures is None else {**result, "federated_test": figures}


def save_model(
    path: Path,
    network: Mapping[str, np.ndarray],
    weights: Mapping[str, np.ndarray],
    study: Study,
    result: Mapping[str, Any],
) -> None:
    """Write the whole network with the released weights and a manifest, in the format of `wardround-sim run`."""
    manifest = {
        "kind": "model",
        "study": study.study.name,
        "study_sha256": result["study_sha256"],
        "architecture_sha256": result["architecture_sha256"],
        "trainable": study.model.trainable,
        **({"released": result["released"]} if "released" in result else {}),
        **release_part(study.study.task).manifest(study),
        "privacy": result["privacy"],
    }
    tensors = {**network, **{name: np.asarray(array).reshape(network[name].shape) for name, array in weights.items()}}
    save_checkpoint(path, tensors, manifest)
